"""What a build's rounds came to so far, from receipts alone, and whether another one may begin."""

from dataclasses import dataclass

from pipeline.artefacts.job import Job
from pipeline.artefacts.receipts import Receipt
from pipeline.recipe import RoundLaw
from pipeline.rounds.approval import decided, of_round, scaled
from pipeline.rounds.chain import Link, was_laid
from pipeline.rounds.choice import Choice, chosen
from pipeline.rounds.rates import laws
from pipeline.rounds.stop import Limits, Past, Stop, why_stop


@dataclass(frozen=True)
class Laid:
    """One round whose choice is made."""

    law: RoundLaw
    choice: Choice
    receipt: Receipt
    """Of the choice."""
    links: tuple[Link, ...]
    """The chain up to and with this round."""

    @property
    def lora(self) -> str:
        """sha256 of the LoRA that was decided on."""
        return str(self.receipt.summary["sha256"])


@dataclass(frozen=True)
class History:
    """What the rounds up to some number came to."""

    laid: tuple[Laid, ...]
    missing: int | None
    """The first round that has no choice yet."""
    stopped: Stop | None
    """Why no round is begun after the last of these, though the recipe has more."""
    scale: float = 1.0
    """On later rounds' rates, by what people answered about these."""

    @property
    def links(self) -> tuple[Link, ...]:
        """The merged rounds."""
        return self.laid[-1].links if self.laid else ()

    @property
    def live(self) -> bool:
        """Whether a text encoder may have learnt in these rounds."""
        return bool(self.laid) and self.laid[-1].law.live

    @property
    def anchor_origin(self) -> float | None:
        """The origin's anchor loss; None without an anchor set, or before round 1."""
        return self.laid[0].choice.counts.anchor_before if self.laid else None


def history(job: Job, last: int) -> History:
    """Of the rounds up to number `last`.

    Raises:
        UrushiError: a file of a round was changed by hand.
    """
    every = laws(job)
    laid: list[Laid] = []
    links: tuple[Link, ...] = ()
    scale = 1.0
    for number in range(1, min(last, len(every)) + 1):
        law = law_after(job, History(tuple(laid), None, None, scale), number)
        found = chosen(job, law, links)
        if found is None:
            return History(tuple(laid), number, None, scale)
        choice, receipt = found
        if choice.merged:
            lora = job.folder.round(number).lora
            digest = receipt.outputs[lora.name].blake3
            links = (*links, Link(number, lora, digest, choice.merged_at))
        laid.append(Laid(law, choice, receipt, links))
        stop = why_stop(_past(job, laid), _limits(job, laid))
        answer = of_round(job, number).about(laid[-1].lora)
        if answer is not None:
            scale *= answer.lr_scale
            if answer.decision == "stop":
                stop = Stop("decision", number, f"that was the decision ({answer.who})")
        if stop is not None and number < len(every):
            return History(tuple(laid), None, stop, scale)
    return History(tuple(laid), None, None, scale)


def law_after(job: Job, before: History, number: int) -> RoundLaw:
    """The law of round `number` on top of the rounds before it, as people's answers changed it."""
    return decided(job, scaled(laws(job)[number - 1], before.scale), before.links)


def _past(job: Job, laid: list[Laid]) -> list[Past]:
    past = []
    for item in laid:
        merged = was_laid(job, item.links) if item.links else None
        trained = sum(attempt.train_seconds for attempt in item.choice.attempts)
        laying = merged.seconds if merged and item.choice.merged else 0.0
        past.append(
            Past(
                round=item.law.number,
                merged=item.choice.merged,
                low=item.choice.counts.low,
                drift=float(merged.summary["drift"]) if merged else 0.0,
                anchor=item.choice.anchor,
                seconds=trained + item.receipt.seconds + laying,
            )
        )
    return past


def _limits(job: Job, laid: list[Laid]) -> Limits:
    rounds = job.recipe.rounds
    origin = laid[0].choice.counts.anchor_before
    budget = rounds.anchor_budget
    return Limits(
        patience=rounds.patience if rounds.gate == "improve" and rounds.patience else None,
        drift=rounds.drift,
        anchor=origin * (1 + budget) if origin is not None and budget is not None else None,
        hours=rounds.hours,
    )
