"""The rates that the rounds follow; where the recipe leaves the peak open, short trials find it.

Each trial trains a while from the origin at one rate and is judged by the held-out loss at its own
best strength, on the choosing half. The trials' LoRAs are not kept.
"""

import shutil
import time
from dataclasses import replace

from pipeline.artefacts.chain import VERSIONS
from pipeline.artefacts.files import write_text
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.ledger import Trial
from pipeline.artefacts.receipts import write_receipt
from pipeline.artefacts.records import Record
from pipeline.progress import Progress
from pipeline.recipe import RoundLaw
from pipeline.rounds.evaluate import HeldOut
from pipeline.rounds.pictures import pictures
from pipeline.rounds.strength import search
from pipeline.rounds.training import training
from pipeline.rounds.trials import tune
from pipeline.rounds.untouched import forget, untouched
from pipeline.train.plan import RoundTraining
from pipeline.train.product import LORA
from pipeline.train.round import train_round

FILE = "trials.json"
RECEIPT = "trials-receipt.json"
SHARE = 4
"""A trial is this part of round 1 where the recipe does not say."""


class Found(Record):
    """builds/NAME/trials.json: what the trials came to."""

    trials: tuple[Trial, ...]
    """By rising rate."""
    best: float


def laws(job: Job) -> tuple[RoundLaw, ...]:
    """The recipe's rounds, with the rate that trials found."""
    every = job.recipe.law()
    if all(law.learning_rate is not None for law in every):
        return every
    found = trials_found(job)
    if found is None:
        return every
    return tuple(
        law if law.learning_rate is not None else _at(law, found.best * law.decay) for law in every
    )


def trials_found(job: Job) -> Found | None:
    """What the trials came to; None where there were none, or they were of other settings."""
    if job.recipe.rounds.learning_rate != "auto":
        return None
    root = job.folder.root
    remedy = "delete it to make the trials again"
    if untouched(job, root, _fingerprint(job), RECEIPT, remedy) is None:
        return None
    return Found.model_validate_json((root / FILE).read_bytes())


def find_rate(job: Job, progress: Progress) -> Outcome:
    """Makes the trials that are not made yet; each can be killed and goes on."""
    found = trials_found(job)
    if found is not None:
        # Where a kill came between the receipt and the tidying.
        shutil.rmtree(job.folder.root / "trials", ignore_errors=True)
        return Outcome("rate", True, _sentence(found))
    started, folder = time.monotonic(), job.folder.root
    first = job.recipe.law()[0]
    seen = pictures(job, first)

    def loss(rate: float) -> float:
        plan = _trial(job, first, rate)
        recipe = job.recipe.model_copy(update={"train": first.train})
        train_round(recipe, plan, progress)
        held_out = HeldOut(recipe, None, (plan.folder / LORA,), live=first.live)

        def mean(strength: float) -> float:
            return float(held_out.losses(seen.folders, seen.split.chooses, (strength,)).mean())

        return min(value for _, value in search(mean).tried)

    made = tune(loss, job.recipe.rounds.trial_rates)
    trials = tuple(Trial(learning_rate=rate, loss=value) for rate, value in made.tried)
    found = Found(trials=trials, best=made.best)
    wanted = _fingerprint(job)
    forget(folder, wanted, RECEIPT)
    write_text(folder / FILE, found.model_dump_json(indent=1) + "\n")
    write_receipt(
        folder,
        "rate",
        wanted,
        inputs={"rates": [rate for rate, _ in made.tried]},
        outputs=[folder / FILE],
        summary={"best": made.best},
        seconds=time.monotonic() - started,
        name=RECEIPT,
    )
    shutil.rmtree(folder / "trials", ignore_errors=True)
    return Outcome("rate", False, _sentence(found))


def _trial(job: Job, first: RoundLaw, rate: float) -> RoundTraining:
    rounds = job.recipe.rounds
    steps, epochs = rounds.trial_steps, None
    if steps is None and first.steps is not None:
        steps = max(1, first.steps // SHARE)
    elif steps is None:
        epochs = max(1, (first.epochs or 1) // SHARE)
    plan = training(job, replace(_at(first, rate), steps=steps, epochs=epochs), (), None, 1)
    return replace(
        plan,
        folder=job.folder.root / "trials" / f"{rate:g}",
        fingerprint=fingerprint(stage="trial", train=plan.fingerprint),
    )


def _at(law: RoundLaw, rate: float) -> RoundLaw:
    return replace(law, learning_rate=rate)


def _fingerprint(job: Job) -> str:
    first, rounds = job.recipe.law()[0], job.recipe.rounds
    return fingerprint(
        stage="rate",
        version=VERSIONS["rate"],
        trials=[_trial(job, first, rate).fingerprint for rate in sorted(rounds.trial_rates)],
        split=pictures(job, first).split.model_dump(mode="json"),
    )


def _sentence(found: Found) -> str:
    tried = ", ".join(f"{trial.learning_rate:g}: {trial.loss:.5f}" for trial in found.trials)
    return f"learning rate {found.best:g}, by held-out loss ({tried})"
