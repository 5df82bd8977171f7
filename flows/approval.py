"""A round that waits for a person: the flow run is suspended, and the GPU is free.

The answer is a file in the build (pipeline.artefacts.decisions). `urushi approve` writes it and
resumes the run; the form in Prefect's interface resumes the run, which writes it first thing.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from flows.flow_runs import in_states
from flows.generations import job_of
from flows.pool import connected
from pipeline.artefacts.decisions import Decisions, decide, overdue, read_decisions
from pipeline.artefacts.job import Job
from pipeline.artefacts.runs import run_root

FORM = "Prefect's form"
KEY = "round-"
"""How the key of a pause for a question begins."""


class Approve(RunInput):
    """The form."""

    decision: Literal["continue", "redo", "stop"] = "continue"
    strength: float | None = Field(None, ge=0, le=2, title="merge this round at this strength")
    lr_scale: float = Field(1.0, gt=0, le=100, title="factor on the learning rate")


def take_answer(job: Job) -> None:
    """Writes what the form was answered into the build; suspends this run while nobody answered.

    Returns at once where no question waits. Call it inside the flow, with no lock held.
    """
    waiting = question(job)
    if waiting is None:
        return
    number, found = waiting
    # The key is the question's: a run that is resumed gets its answer here, and any other waits.
    answer = suspend_flow_run(
        wait_for_input=Approve.with_initial_data(description=_described(job, number)),
        key=key_of(number, found),
        timeout=365 * 86_400,
    )
    if read_decisions(_path(job, number)).waiting:
        decide(
            _path(job, number),
            answer.decision,
            who=FORM,
            strength=answer.strength,
            lr_scale=answer.lr_scale,
        )


def question(job: Job) -> tuple[int, Decisions] | None:
    """The round that a person is asked about, with all its questions; None where none waits."""
    if job.build is None or job.recipe.rounds.approve == "no":
        return None  # A question that was asked before the recipe asked nobody waits for nobody.
    for law in job.recipe.law():
        found = read_decisions(_path(job, law.number))
        if found.waiting:
            return law.number, found
    return None


def key_of(number: int, found: Decisions) -> str:
    """The key of the pause for the last of these questions, and for no other: one that takes the
    place of a withdrawn one is about another LoRA."""
    last = found.asked[-1]
    asked = int(last.at.timestamp())
    return f"{KEY}{number:02d}-{len(found.asked)}-{last.lora[:12]}-{asked}"


def resume_build(build: Path) -> list[str]:
    """Resumes the suspended runs of a build's folder; returns their names.

    Raises:
        UrushiError: the server does not answer.
    """
    resumed = []
    with connected() as client:
        for run in suspended(client):
            job = job_of(run.parameters)
            if job is not None and run_root(job) == build:
                client.resume_flow_run(run.id, run_input=Approve().model_dump())
                resumed.append(run.name)
    return resumed


def settle(client: SyncPrefectClient, mine: str) -> Iterable[tuple[str, str]]:
    """Resumes runs of this machine (`mine` is its tag) whose question has its answer.

    Where nobody answered within [rounds].approve_hours, the recipe's default is the answer.
    Yields (run, what was done).
    """
    for run in suspended(client):
        job = job_of(run.parameters) if mine in run.tags else None
        if job is None or job.build is None:
            continue
        waiting = question(job)
        said = "its question is answered; resumed"
        if waiting is not None:
            rounds = job.recipe.rounds
            if not overdue(waiting[1], rounds.approve_hours):
                continue
            who = f"nobody for {rounds.approve_hours:g} hours"
            decide(_path(job, waiting[0]), rounds.approve_default, who=who)
            said = f"nobody answered; {rounds.approve_default}, as the recipe says"
        client.resume_flow_run(run.id, run_input=Approve().model_dump())
        yield run.name, said


def suspended(client: SyncPrefectClient) -> list[FlowRun]:
    """Runs that wait for an answer; one that a person paused for reasons of their own does not."""
    return [run for run in in_states(client, [StateType.PAUSED]) if _asks(run)]


def _asks(run: FlowRun) -> bool:
    key = run.state.state_details.pause_key if run.state is not None else None
    return key is not None and key.startswith(KEY)


def _path(job: Job, number: int) -> Path:
    return job.folder.round(number).decisions


def _described(job: Job, number: int) -> str:
    name = job.recipe.name
    return (
        f"## Round {number} of {name}\n\n"
        f"Its figures and grid are in the artifact `{name}-round-{number:02d}`. In a shell:\n\n"
        f"    urushi approve {name} continue\n    urushi approve {name} redo --lr-scale 0.5\n"
        f"    urushi approve {name} stop"
    )
