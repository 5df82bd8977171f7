"""[rounds].approve: what people decided about a round, and what it makes of the rounds' law.

The answers are a file (pipeline.artefacts.decisions) that changes the law of the rounds, so that
everything else follows from fingerprints: another strength is merged anew, a round that is done
again has another seed. An answer holds for the LoRA that it was given about, and for no other.
"""

from dataclasses import replace
from math import prod

from pipeline.artefacts.decisions import Decision, Decisions, read_decisions
from pipeline.artefacts.job import Job
from pipeline.recipe import RoundLaw
from pipeline.rounds.chain import Link
from pipeline.rounds.training import training


def scaled(law: RoundLaw, scale: float) -> RoundLaw:
    """The law at another rate, as answers about earlier rounds want it."""
    rate = law.learning_rate
    return law if rate is None else replace(law, learning_rate=rate * scale)


def decided(job: Job, law: RoundLaw, base: tuple[Link, ...]) -> RoundLaw:
    """The law of a round on top of `base`, with what people had it done again for."""
    found = of_round(job, law.number)
    if not found.decided or law.learning_rate is None:
        return law
    redos = found.redos(training(job, law, base, None, 1).fingerprint)
    rate = law.learning_rate * prod(redo.lr_scale for redo in redos)
    return replace(law, learning_rate=rate, redone=len(redos))


def of_round(job: Job, number: int) -> Decisions:
    """What was asked and answered about round `number`; nothing where the recipe asks nobody."""
    if job.recipe.rounds.approve == "no":
        return Decisions()
    return read_decisions(job.folder.round(number).decisions)


def sentence(number: int, answer: Decision) -> str:
    """An answer for a person."""
    strength = "" if answer.strength is None else f", strength {answer.strength:g}"
    rate = "" if answer.lr_scale == 1 else f", later rates × {answer.lr_scale:g}"
    return f"round {number}: {answer.decision}{strength}{rate} ({answer.who})"
