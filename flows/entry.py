"""The flows that deployments name: plain words in, the same parts as `urushi run`.

    data RECIPE WORKSPACE        download, caption, resize, cache
    build RECIPE WORKSPACE       the same, then the rounds

Parameters are paths and names. Keys to sites come from the environment or the key file of whoever
runs the worker, never from a parameter: Prefect keeps those in its database and shows them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed

from flows.alive import alive
from flows.graph import walk
from flows.progress import Lines
from flows.work import at_work
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.runs import finished, run_fingerprint, run_root
from pipeline.artefacts.workspace import Workspace
from pipeline.errors import GateStopped, Interrupted, RequestError

STOPPED = "Stopped by the gate"
NOTHING = "Nothing to do"


def _name() -> str:
    """Such as: build turquoise."""
    return f"{flow_run.flow_name} {deployment.name or Path(flow_run.parameters['recipe']).stem}"


@flow(name="data", flow_run_name=_name, persist_result=False, retries=0)
def data(recipe: str, workspace: str, notify: list[str] | None = None) -> State[Any] | None:
    """The data stages of a recipe, as far as they are not done."""
    with _here(workspace):
        job = load_job(Path(recipe), Path(workspace))
        return _walk(job, ())


@flow(name="build", flow_run_name=_name, persist_result=False, retries=0)
def build(recipe: str, workspace: str, notify: list[str] | None = None) -> State[Any] | None:
    """Everything that a build recipe asks, as far as it is not done."""
    with _here(workspace):
        job = load_job(Path(recipe), Path(workspace))
        if job.build is None:
            raise RequestError(f"{recipe} is a dataset recipe; the flow `data` runs those.")
        if finished(run_root(job), run_fingerprint(job)):
            return Completed(name=NOTHING, message=f"{job.recipe.name} is finished.")
        return _walk(job, None)


def _walk(job: Job, parts: tuple[()] | None) -> State[Any] | None:
    """Walks the parts of `job`; a stop that was asked for, or decided, is no failure."""
    log = get_run_logger()
    try:
        with at_work(job, Lines(log.info), parts) as work:
            walk(work)
    except GateStopped as stop:
        return Completed(name=STOPPED, message=str(stop))
    except Interrupted as stop:
        return Cancelled(message=str(stop))
    return None


@contextmanager
def _here(workspace: str) -> Iterator[None]:
    """Holds the lock of this flow run, by which others know that it lives."""
    run = flow_run.id or str(os.getpid())
    with alive(Workspace(Path(workspace).resolve()), run):
        yield


FLOWS: dict[str, Any] = {"data": data, "build": build}
"""What can be deployed, by name."""
