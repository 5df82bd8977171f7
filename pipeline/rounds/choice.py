"""One round's choice: train, search the strength, ask the gate, once more if it did not help."""

import time
from pathlib import Path
from typing import Literal

from pipeline.artefacts.files import share, write_text
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job
from pipeline.artefacts.ledger import Candidate, Decision
from pipeline.artefacts.receipts import Receipt, done, write_receipt
from pipeline.artefacts.records import Record
from pipeline.progress import Progress
from pipeline.recipe import RoundLaw
from pipeline.rounds.chain import Link, sha256
from pipeline.rounds.evaluate import HeldOut
from pipeline.rounds.gate import Verdict, judge
from pipeline.rounds.strength import search
from pipeline.rounds.training import Pictures, pictures, training
from pipeline.train.counted import seed_of
from pipeline.train.plan import RoundTraining
from pipeline.train.product import LORA
from pipeline.train.round import train_round

RECEIPT = "strength.json"
ATTEMPTS = 2


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
    strength: float
    before: float
    after: float
    low: float
    high: float
    """On the judging half, as in Verdict."""
    losses_before: tuple[float, ...]
    losses_after: tuple[float, ...]
    """Per picture of the judging half, in the manifest's order."""


class Choice(Record):
    """rounds/NN/heldout.json."""

    round: int
    decision: Decision
    strength: float
    """What is merged; 0 for a rejected round."""
    attempts: tuple[Attempt, ...]

    @property
    def counts(self) -> Attempt:
        """The attempt that was decided on: the last."""
        return self.attempts[-1]

    @property
    def merged(self) -> bool:
        return self.decision != "rejected"


def choice_fingerprint(job: Job, law: RoundLaw, base: tuple[Link, ...]) -> str:
    """Of the first attempt's training, the held-out manifest and the rules of the choice."""
    split = pictures(job, law).split
    return fingerprint(
        stage="strength",
        train=training(job, law, base, None, 1).fingerprint,
        split=split.model_dump(mode="json"),
        strength=law.strength,
        gate=job.recipe.rounds.gate,
    )


def chosen(job: Job, law: RoundLaw, base: tuple[Link, ...]) -> tuple[Choice, Receipt] | None:
    """The round's choice and its receipt, if it was made on top of `base`."""
    folder = job.folder.round(law.number)
    receipt = done(folder.root, choice_fingerprint(job, law, base), RECEIPT)
    if receipt is None:
        return None
    return Choice.model_validate_json(folder.held_out.read_bytes()), receipt


def choose(
    job: Job, law: RoundLaw, base: tuple[Link, ...], checkpoint: Path | None, progress: Progress
) -> Choice:
    """Makes the round's choice and writes heldout.json, lora.safetensors and the receipt."""
    started, trained = time.monotonic(), 0.0
    folder, seen = job.folder.round(law.number), pictures(job, law)
    attempts: list[Attempt] = []
    decision: Decision = "rejected"
    for number in range(1, ATTEMPTS + 1):
        plan = training(job, law, base, checkpoint, number)
        before_training = time.monotonic()
        receipt = train_round(job.recipe, plan, progress)
        trained += time.monotonic() - before_training
        attempts.append(_judged(job, law, plan, receipt, seen, progress))
        outcome = _decide(attempts[-1], job.recipe.rounds.gate, number)
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
    share(folder.root / last.lora, folder.lora)
    write_text(folder.held_out, choice.model_dump_json(indent=1) + "\n")
    write_receipt(
        folder.root,
        "strength",
        choice_fingerprint(job, law, base),
        inputs={"round": law.number},
        outputs=[folder.lora, folder.held_out],
        summary={
            "strength": choice.strength,
            "decision": decision,
            "sha256": sha256(folder.lora),
        },
        seconds=time.monotonic() - started - trained,
        name=RECEIPT,
    )
    return choice


def _decide(attempt: Attempt, gate: Literal["improve", "always"], number: int) -> Decision | None:
    if gate == "always":
        return "always"
    if attempt.strength > 0 and attempt.after < attempt.before:
        return "accepted" if number == 1 else "accepted on retry"
    return None


def _judged(
    job: Job,
    law: RoundLaw,
    plan: RoundTraining,
    receipt: Receipt,
    seen: Pictures,
    progress: Progress,
) -> Attempt:
    """Searches the strength on one half of the held-out pictures and judges it on the other."""
    lora, split = plan.folder / LORA, seen.split
    held_out = HeldOut(job.recipe, plan.checkpoint, lora, plan.latents, plan.texts)
    with progress.bar(f"strength {law.number}", 6 if law.strength is None else 4, "pass") as bar:

        def mean_loss(strength: float) -> float:
            losses = held_out.losses(split, strength, chooses=True)
            bar.advance()
            bar.note(f"{strength:g}")
            return sum(losses) / len(losses)

        if law.strength is None:
            found = search(mean_loss)
            tried, strength = found.tried, found.best
        else:
            strength = law.strength
            tried = tuple((s, mean_loss(s)) for s in dict.fromkeys((0.0, strength)))
        before = held_out.losses(split, 0.0, chooses=False)
        after = held_out.losses(split, strength, chooses=False)
        bar.advance(2)
    verdict: Verdict = judge(before, after, seed_of(job.recipe.seed, "bootstrap", law.number))
    return Attempt(
        learning_rate=plan.learning_rate,
        steps=receipt.summary["steps"],
        train_loss=receipt.summary["train_loss"],
        train_seconds=receipt.seconds,
        lora=str(lora.relative_to(job.folder.round(law.number).root)),
        candidates=tuple(Candidate(strength=s, loss=loss) for s, loss in tried),
        strength=strength,
        before=verdict.before,
        after=verdict.after,
        low=verdict.low,
        high=verdict.high,
        losses_before=tuple(before),
        losses_after=tuple(after),
    )
