"""[rounds].approve: a person looks at a round before the next one begins.

The part `round-NN-approve` asks, and ends the run until there is an answer; the answer is a file
(pipeline.artefacts.decisions) that changes the law of the rounds, so that everything else follows
from fingerprints: another strength is merged anew, a round that is done again has another seed.
"""

from dataclasses import replace

from pipeline.artefacts.decisions import Decision, Decisions, ask, decide, overdue, read_decisions
from pipeline.artefacts.job import Job, Outcome
from pipeline.errors import NeedsDecision
from pipeline.progress import Progress
from pipeline.recipe import RoundLaw


def decided(job: Job, laws: tuple[RoundLaw, ...]) -> tuple[RoundLaw, ...]:
    """The laws as people's decisions on earlier rounds have changed them."""
    if job.recipe.rounds.approve == "no":
        return laws
    changed, scale = [], 1.0
    for law in laws:
        found = of_round(job, law.number)
        rate = law.learning_rate
        answer = found.last
        changed.append(
            replace(
                law,
                learning_rate=None if rate is None else rate * scale * found.redo_scale,
                strength=_strength(law, answer),
                redone=found.redone,
            )
        )
        scale *= answer.lr_scale if answer is not None else 1.0
    return tuple(changed)


def _strength(law: RoundLaw, answer: Decision | None) -> float | None:
    return law.strength if answer is None or answer.strength is None else answer.strength


def of_round(job: Job, number: int) -> Decisions:
    """What was asked and answered about round `number`."""
    return read_decisions(job.folder.round(number).decisions)


def stopped_by(job: Job, number: int) -> str | None:
    """Who ended the build after round `number`; None where nobody did."""
    if job.recipe.rounds.approve == "no":
        return None
    answer = of_round(job, number).last
    return answer.who if answer is not None and answer.decision == "stop" else None


def approve(job: Job, law: RoundLaw, progress: Progress) -> Outcome:
    """Asks about a round whose grid is there, or finds the answer.

    Raises:
        NeedsDecision: nobody has answered yet.
    """
    path, rounds = job.folder.round(law.number).decisions, job.recipe.rounds
    found = read_decisions(path)
    if overdue(found, rounds.approve_hours):
        who = f"nobody for {rounds.approve_hours:g} hours"
        found = decide(path, rounds.approve_default, who=who)
    answer = found.last
    if answer is not None:
        return Outcome("approve", True, sentence(law.number, answer))
    ask(path)
    name, number = job.recipe.name, law.number
    raise NeedsDecision(
        number,
        f"Round {number} of {name} waits for your decision: its grid is "
        f"{job.folder.round(number).grid}, its figures are in `urushi status`. Say "
        f"`urushi approve {name} continue`, `redo` or `stop`; then run the same command again.",
    )


def sentence(number: int, answer: Decision) -> str:
    """An answer for a person."""
    strength = "" if answer.strength is None else f", strength {answer.strength:g}"
    rate = "" if answer.lr_scale == 1 else f", later rates × {answer.lr_scale:g}"
    return f"round {number}: {answer.decision}{strength}{rate} ({answer.who})"
