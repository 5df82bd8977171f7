"""The flows that deployments name: plain words in, the same parts as `urushi run`.

    data RECIPE WORKSPACE        download, caption, resize, cache
    build RECIPE WORKSPACE       the same, then the rounds
    refresh RECIPE WORKSPACE     asks for newer pictures; more rounds when enough have come
    compare BUILDS WORKSPACE     the rounds of several builds on one page

Parameters are paths and names. Keys to sites come from the environment or the key file of whoever
runs the worker, never from a parameter: Prefect keeps those in its database and shows them.
"""

import atexit
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed

from flows import generations
from flows.alive import alive
from flows.approval import take_answer
from flows.graph import walk
from flows.notify import notify as tell
from flows.pages import compare_page
from flows.progress import Lines
from flows.scale import scaled
from flows.work import Part, at_work, data_parts, refreshing
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.runs import run_root
from pipeline.artefacts.workspace import Workspace
from pipeline.errors import (
    GateStopped,
    Interrupted,
    NeedsDecision,
    RequestError,
    UrushiError,
)

STOPPED = "Stopped by the gate"
NOTHING = "Nothing to do"
EXIT_SECONDS = 60.0
"""For the process of a run that was suspended, and is resumed already, to be gone."""


def _name() -> str:
    """Such as: build turquoise."""
    words = flow_run.parameters
    return f"{flow_run.flow_name} {deployment.name or Path(words.get('recipe', 'builds')).stem}"


@flow(name="data", flow_run_name=_name, persist_result=False, retries=0)
def data(recipe: str, workspace: str, notify: list[str] | None = None) -> State[Any] | None:
    """The data stages of a recipe, as far as they are not done."""
    _begin(workspace)
    return _walk(load_job(Path(recipe), Path(workspace)), notify or (), later=())


@flow(name="build", flow_run_name=_name, persist_result=False, retries=0)
def build(recipe: str, workspace: str, notify: list[str] | None = None) -> State[Any] | None:
    """Everything that a build recipe asks, as far as it is not done."""
    _begin(workspace)
    return _build(_build_job(recipe, workspace), notify or ())


@flow(name="refresh", flow_run_name=_name, persist_result=False, retries=0)
def refresh(
    recipe: str,
    workspace: str,
    notify: list[str] | None = None,
    least_new: int = generations.LEAST_NEW,
    rounds: int = generations.ROUNDS,
) -> State[Any] | None:
    """Asks for newer pictures; when `least_new` have come, lays `rounds` rounds on what stands.

    A build that is not over goes on first, with the pictures that it has.
    """
    _begin(workspace)
    first = _build_job(recipe, workspace)
    last = generations.newest(first)
    if not generations.is_over(last):
        return _build(last, notify or ())
    before = generations.begin(last)
    ended = _walk(first, notify or (), later=(), first=refreshing(first))
    if ended is not None:
        return ended
    came = generations.pictures(first) - before
    get_run_logger().info("%s new pictures since %s", came, last.recipe.name)
    if came < least_new:
        return Completed(name=NOTHING, message=f"{came} new pictures, {least_new} are wanted")
    following = generations.next_generation(first, last, rounds)
    generations.begin(following)
    return _build(following, notify or ())


@flow(name="compare", flow_run_name="compare builds", persist_result=False, retries=0)
def compare(workspace: str, builds: list[str] | None = None) -> None:
    """One page with the rounds and the last grid of `builds`, or of every build there is."""
    _begin(workspace)
    place = Workspace(Path(workspace).resolve())
    there = (path.parent.name for path in place.root.glob("builds/*/build.json"))
    names = builds or sorted(there)
    create_markdown_artifact(
        compare_page([place.build(name) for name in names]),
        key="compare",
        description=f"{len(names)} builds beside one another",
    )


FLOWS: dict[str, Any] = {"data": data, "build": build, "refresh": refresh}
"""What a recipe can be deployed as, by name."""


def _build_job(recipe: str, workspace: str) -> Job:
    job = load_job(Path(recipe), Path(workspace))
    if job.build is None:
        raise RequestError(f"{recipe} is a dataset recipe; the flow `data` runs those.")
    return job


def _build(job: Job, blocks: Sequence[str]) -> State[Any] | None:
    if generations.is_done(job):
        return Completed(name=NOTHING, message=f"{job.recipe.name} is finished.")
    return _walk(job, blocks)


def _walk(
    job: Job,
    blocks: Sequence[str],
    *,
    later: Sequence[Part] | None = None,
    first: Sequence[Part] | None = None,
) -> State[Any] | None:
    """Walks the parts of `job`; a stop that was asked for, or decided, is no failure.

    Args:
        first, later: instead of the data stages, and of the rounds' parts.
    """
    job, name = scaled(job), run_root(job).name
    if later is None:
        take_answer(job)
    try:
        with at_work(job, Lines(get_run_logger().info), later) as work:
            own = len(data_parts(job))
            if first is not None:
                work = replace(work, parts=(*first, *work.parts[own:]))
            walk(work)
    except GateStopped as stop:
        tell(blocks, f"{name}: stopped by the gate", str(stop))
        return Completed(name=STOPPED, message=str(stop))
    except Interrupted as stop:
        return Cancelled(message=str(stop))
    except NeedsDecision as waits:
        tell(blocks, f"{name}: round {waits.round} waits for you", str(waits))
        # The run is suspended, and this process ends; the GPU is free. Resumed, it begins anew.
        take_answer(job)
        raise
    except UrushiError as error:
        tell(blocks, f"{name}: failed", str(error))
        raise
    if later is None:
        tell(blocks, f"{name}: finished", f"{job.folder.final}\n{job.folder.report}")
    return None


def _begin(workspace: str) -> None:
    """Holds the lock of this flow run, by which others know that it lives, until this process ends.

    Not only until the flow returns: Prefect hears of a run's end a moment later, and a run that it
    believes alive and whose lock is free is taken for dead.
    """
    until_exit = ExitStack()
    run = flow_run.id or str(os.getpid())
    until_exit.enter_context(alive(Workspace(Path(workspace).resolve()), run, EXIT_SECONDS))
    atexit.register(until_exit.close)
