"""[rounds].approve: a person looks at a round before the next one begins.

The part `round-NN-approve` asks, and ends the run until there is an answer; what the answer does is
in pipeline.rounds.approval.
"""

from pipeline.artefacts.decisions import ask, decide, overdue
from pipeline.artefacts.job import Job, Outcome
from pipeline.errors import NeedsDecision, RequestError
from pipeline.progress import Progress
from pipeline.recipe import RoundLaw
from pipeline.rounds.approval import of_round, scaled, sentence
from pipeline.rounds.history import history
from pipeline.rounds.rates import laws
from pipeline.rounds.training import training


def approve(job: Job, law: RoundLaw, progress: Progress) -> Outcome:
    """Asks about a round whose grid is there, or finds the answer.

    Raises:
        NeedsDecision: nobody has answered yet.
    """
    path, rounds = job.folder.round(law.number).decisions, job.recipe.rounds
    found = history(job, law.number)
    if found.missing is not None:
        raise RequestError(f"Round {found.missing} is not finished. `urushi run` goes on.")
    lora = found.laid[-1].lora
    asked = of_round(job, law.number)
    if overdue(asked, rounds.approve_hours) and asked.asked[-1].lora == lora:
        who = f"nobody for {rounds.approve_hours:g} hours"
        asked = decide(path, rounds.approve_default, who=who)
    answer = asked.about(lora)
    if answer is not None:
        return Outcome("approve", True, sentence(law.number, answer))
    before = history(job, law.number - 1)
    first = scaled(laws(job)[law.number - 1], before.scale)
    ask(path, lora, training(job, first, before.links, None, 1).fingerprint)
    name, number = job.recipe.name, law.number
    raise NeedsDecision(
        number,
        f"Round {number} of {name} waits for your decision: its grid is "
        f"{job.folder.round(number).grid}, its figures are in `urushi status`. Say "
        f"`urushi approve {name} continue`, `redo` or `stop`; then run the same command again.",
    )
