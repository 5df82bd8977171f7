"""One round's choice: train, search the strength, ask the gate, once more if it did not help."""

import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts.chain import VERSIONS
from pipeline.artefacts.files import share, write_text
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job
from pipeline.artefacts.ledger import BucketLoss, Candidate, Decision
from pipeline.artefacts.receipts import Receipt, write_receipt
from pipeline.artefacts.records import Record
from pipeline.artefacts.strength import Strength, joined, parted, shrunk, told
from pipeline.progress import Bar, Progress
from pipeline.recipe import RoundLaw
from pipeline.rounds.anchor import anchor_of
from pipeline.rounds.approval import of_round
from pipeline.rounds.buckets import bucket_losses
from pipeline.rounds.chain import Link, sha256
from pipeline.rounds.evaluate import HeldOut, Losses
from pipeline.rounds.gate import ATTEMPTS, ceiling, judge, shrink
from pipeline.rounds.jury import Jury
from pipeline.rounds.machine import peak_memory, versions
from pipeline.rounds.parting import Parting
from pipeline.rounds.pictures import Pictures, pictures
from pipeline.rounds.refit import refit
from pipeline.rounds.split import HeldOutPicture
from pipeline.rounds.strength import Search, at, search
from pipeline.rounds.training import training
from pipeline.rounds.untouched import forget, untouched
from pipeline.train.counted import seed_of
from pipeline.train.plan import RoundTraining
from pipeline.train.product import LORA
from pipeline.train.round import train_round

RECEIPT = "strength.json"


class Attempt(Record):
    """One LoRA and what the held-out pictures said of it."""

    learning_rate: float
    steps: int
    train_loss: float
    train_seconds: float
    lora: str
    """Relative to the round's folder."""
    candidates: tuple[Candidate, ...]
    """On the choosing half."""
    wanted: float
    """The strength that the choosing half asks for."""
    strength: float
    """What the anchor leaves of it."""
    encoders: float | None = None
    """The text encoders' strength, where `strength` is the UNet's alone; None where it is both's.
    """
    before: float
    after: float
    low: float
    high: float
    """On the judging half, as in Verdict."""
    losses_before: tuple[float, ...]
    losses_after: tuple[float, ...]
    """Per picture of the judging half, in the manifest's order."""
    buckets: tuple[BucketLoss, ...]
    """The judging half's losses by timestep."""
    anchor_candidates: tuple[Candidate, ...]
    anchor_before: float | None
    anchor_after: float | None
    """Mean loss of the anchor pictures; None without any."""


class Choice(Record):
    """rounds/NN/heldout.json."""

    round: int
    decision: Decision
    strength: float
    """What is merged; 0 for a rejected round."""
    attempts: tuple[Attempt, ...]

    @property
    def merged_at(self) -> Strength:
        """`strength`, with the text encoders' where they have one of their own."""
        return joined(self.strength, self.counts.encoders if self.merged else None)

    @property
    def counts(self) -> Attempt:
        """The attempt that was decided on: the last."""
        return self.attempts[-1]

    @property
    def merged(self) -> bool:
        return self.decision != "rejected"

    @property
    def anchor(self) -> float | None:
        """The anchor loss that the next round starts from."""
        return self.counts.anchor_after if self.merged else self.counts.anchor_before


def choice_fingerprint(job: Job, law: RoundLaw, base: tuple[Link, ...]) -> str:
    """Of the first attempt's training, the held-out manifest and the rules of the choice."""
    split, rounds, anchor = pictures(job, law).split, job.recipe.rounds, anchor_of(job)
    anchored = {}
    if anchor is not None:
        manifest = anchor.split.model_dump(mode="json")
        texts = anchor.folders.text_fingerprint
        anchored = {"anchor": manifest, "texts": texts, "budget": rounds.anchor_budget}
    given = of_round(job, law.number).strengths
    return fingerprint(
        stage="strength",
        version=VERSIONS["strength"],
        train=training(job, law, base, None, 1).fingerprint,
        split=split.model_dump(mode="json"),
        strength=law.strength,
        gate=rounds.gate,
        **anchored,
        **({"given": given} if given else {}),
        **({"apart": True} if law.apart else {}),
    )


def chosen(job: Job, law: RoundLaw, base: tuple[Link, ...]) -> tuple[Choice, Receipt] | None:
    """The round's choice and its receipt, if it was made on top of `base`.

    Raises:
        UrushiError: its LoRA or its choice was changed by hand.
    """
    folder = job.folder.round(law.number)
    wanted = choice_fingerprint(job, law, base)
    remedy = f"delete {folder.root} to train the round again"
    receipt = untouched(job, folder.root, wanted, RECEIPT, remedy)
    if receipt is None:
        return None
    return Choice.model_validate_json(folder.held_out.read_bytes()), receipt


def choose(
    job: Job,
    law: RoundLaw,
    base: tuple[Link, ...],
    checkpoint: Path | None,
    anchor_origin: float | None,
    progress: Progress,
) -> Choice:
    """Makes the round's choice and writes heldout.json, lora.safetensors and the receipt.

    `anchor_origin` is the origin's anchor loss, None in round 1, which measures it.
    """
    started, trained = time.monotonic(), 0.0
    folder, seen = job.folder.round(law.number), pictures(job, law)
    attempts: list[Attempt] = []
    decision: Decision = "rejected"
    for number in range(1, ATTEMPTS + 1):
        plan = training(job, law, base, checkpoint, number)
        before_training = time.monotonic()
        receipt = train_round(job.recipe.model_copy(update={"train": law.train}), plan, progress)
        trained += time.monotonic() - before_training
        given = _given(job, law, plan)
        wanted = law.strength if given is None else given
        judged = _judged(job, law, plan, seen, wanted, anchor_origin, progress)
        attempts.append(_attempt(job, law, plan, receipt, judged))
        gate = job.recipe.rounds.gate if given is None else "always"
        outcome = _decide(gate, attempts[-1], number)
        if outcome is not None:
            decision = outcome
            break
        if number < ATTEMPTS:
            progress.say(
                f"round {law.number} did not lower the held-out loss "
                f"({attempts[-1].before:.5f} -> {attempts[-1].after:.5f}); "
                "once more at half the rate"
            )
    last = attempts[-1]
    choice = Choice(
        round=law.number,
        decision=decision,
        strength=0.0 if decision == "rejected" else last.strength,
        attempts=tuple(attempts),
    )
    mark = choice_fingerprint(job, law, base)
    forget(folder.root, mark, RECEIPT)
    share(folder.root / last.lora, folder.lora)
    write_text(folder.held_out, choice.model_dump_json(indent=1) + "\n")
    write_receipt(
        folder.root,
        "strength",
        mark,
        inputs={"round": law.number},
        outputs=[folder.lora, folder.held_out],
        summary={
            "strength": choice.strength,
            "decision": decision,
            "sha256": sha256(folder.lora),
            "peak_memory": peak_memory(),
            "versions": versions(),
        },
        seconds=time.monotonic() - started - trained,
        name=RECEIPT,
    )
    return choice


def _given(job: Job, law: RoundLaw, plan: RoundTraining) -> float | None:
    """The strength that a person, who was shown just this LoRA, wants it merged at; whatever the
    judging half says."""
    strengths = of_round(job, law.number).strengths
    return strengths.get(sha256(plan.folder / LORA)) if strengths else None


def _decide(gate: str, attempt: Attempt, number: int) -> Decision | None:
    if gate == "always":
        return "always"
    if attempt.strength > 0 and attempt.after < attempt.before:
        return "accepted" if number == 1 else "accepted on retry"
    return None


@dataclass(frozen=True)
class _Judged:
    """What the held-out and the anchor pictures say of one LoRA."""

    search: Search
    wanted: Strength
    """By the choosing half."""
    strength: Strength
    before: Losses
    after: Losses
    """Of the judging half."""
    anchor: tuple[tuple[Strength, float], ...]


def _judged(
    job: Job,
    law: RoundLaw,
    plan: RoundTraining,
    seen: Pictures,
    wanted: float | None,
    anchor_origin: float | None,
    progress: Progress,
) -> _Judged:
    """Finds the strength on one half of the held-out pictures (`wanted` where that is given), and
    judges it on the other."""
    split, anchor = seen.split, anchor_of(job)
    # As it was trained: what the base is stored as decides what it may be judged on.
    recipe = job.recipe.model_copy(update={"train": law.train})
    loras = (plan.folder / LORA,)
    held_out = HeldOut(recipe, plan.checkpoint, loras, plan.beside, live=law.live)
    passes = (6 if wanted is None else 4) + (0 if anchor is None else 2)
    passes += 6 if law.apart and wanted is None else 0
    with progress.bar(f"strength {law.number}", passes, "pass") as bar:
        mean = _Mean(held_out, seen, split.chooses, bar)
        found = search(mean) if wanted is None else at(mean, wanted)
        sought: Strength = found.best
        if law.apart and wanted is None and found.best > 0:
            sought = _parted(held_out, seen, bar, found.best)
        strength = sought
        anchored: tuple[tuple[Strength, float], ...] = ()
        if anchor is not None:
            forgets = _Mean(held_out, anchor, anchor.split.held_out, bar)
            before = forgets(0.0)
            most = ceiling(before, anchor_origin or before, job.recipe.rounds.anchor_budget)
            if isinstance(sought, tuple):
                way = shrink(lambda share: forgets(shrunk(sought, share)), 1.0, most)
                strength = shrunk(sought, way.strength)
            else:
                strength = shrink(forgets, sought, most).strength
            forgets(strength)
            anchored = tuple(forgets.known.items())
        losses = [held_out.losses(seen.folders, split.judges, (s,)) for s in (0.0, strength)]
        bar.advance(2)
    return _Judged(found, sought, strength, losses[0], losses[1], anchored)


def _parted(held_out: HeldOut, seen: Pictures, bar: Bar, best: float) -> Strength:
    """Strengths apart for UNet and text encoders, from the one that suits both: the same fit that
    is made over all rounds at the end. `best` itself where they gain nothing, or where the UNet's
    part would be left out."""
    parting = Parting((True,))
    jury = Jury(held_out, [seen], bar, parting.strengths)
    found = refit(jury.choosing_loss, jury.around, parting.flat([best]))
    (strength,) = parting.strengths(found.strengths)
    return strength if parted(strength)[0] > 0 and found.after < found.before else best


class _Mean:
    """The mean loss of some pictures at a strength; each strength is evaluated once."""

    def __init__(
        self, held_out: HeldOut, seen: Pictures, chosen: tuple[HeldOutPicture, ...], bar: Bar
    ) -> None:
        self._held_out, self._seen, self._pictures, self._bar = held_out, seen, chosen, bar
        self.known: dict[Strength, float] = {}

    def __call__(self, strength: Strength) -> float:
        if strength not in self.known:
            losses = self._held_out.losses(self._seen.folders, self._pictures, (strength,))
            self.known[strength] = float(losses.mean())
            self._bar.advance()
            self._bar.note(told(strength))
        return self.known[strength]


def _candidates(tried: tuple[tuple[Strength, float], ...]) -> tuple[Candidate, ...]:
    return tuple(Candidate(strength=parted(s)[0], loss=loss) for s, loss in tried)


def _attempt(
    job: Job, law: RoundLaw, plan: RoundTraining, receipt: Receipt, judged: _Judged
) -> Attempt:
    before, after = (losses.mean(axis=1).tolist() for losses in (judged.before, judged.after))
    verdict = judge(before, after, seed_of(job.recipe.seed, "bootstrap", law.number))
    anchor, (unet, text) = dict(judged.anchor), parted(judged.strength)
    lora = plan.folder / LORA
    return Attempt(
        learning_rate=plan.learning_rate,
        steps=receipt.summary["steps"],
        train_loss=receipt.summary["train_loss"],
        train_seconds=receipt.seconds,
        lora=str(lora.relative_to(job.folder.round(law.number).root)),
        candidates=_candidates(judged.search.tried),
        wanted=parted(judged.wanted)[0],
        strength=unet,
        encoders=text if isinstance(judged.strength, tuple) else None,
        before=verdict.before,
        after=verdict.after,
        low=verdict.low,
        high=verdict.high,
        losses_before=tuple(before),
        losses_after=tuple(after),
        buckets=bucket_losses(judged.before, judged.after),
        anchor_candidates=_candidates(judged.anchor),
        anchor_before=anchor.get(0.0),
        anchor_after=anchor.get(judged.strength),
    )
