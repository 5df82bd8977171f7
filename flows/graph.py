"""The flows as Prefect sees them: parts walked in order, each a task, watched by artifacts."""

from dataclasses import replace
from functools import partial
from typing import Any

from prefect import flow
from prefect.states import Completed

from flows.artifacts import Artifacts
from flows.progress import Published
from flows.tasks import WAITS, perform
from flows.work import Work
from pipeline.artefacts.runs import run_root
from pipeline.errors import NeedsDecision


def walk(work: Work) -> None:
    """Runs the parts of `work` inside the flow that calls this. What a part raises crosses."""
    artifacts = Artifacts(work.job)
    work = replace(work, progress=Published(work.progress, artifacts.progress))
    try:
        for part in work.parts:
            artifacts.done(part.name, perform(part.name, partial(work.perform, part)))
    except Exception as error:
        artifacts.failed(error)
        raise


def walk_here(work: Work) -> None:
    """Runs the parts of `work` as one flow in this process."""
    kind = "data" if work.job.build is None else "build"

    # The parameters are for whoever looks at the run later. The work comes by closure: Prefect
    # would store parameters as JSON, which it is not.
    @flow(
        name=kind,
        flow_run_name=f"{kind} {run_root(work.job).name}",
        persist_result=False,
        retries=0,
    )
    def parts_in_order(recipe: str, workspace: str) -> Any:
        try:
            walk(work)
        except NeedsDecision as question:
            return Completed(data=question, name=WAITS, message=str(question))
        return Completed(data=None)

    words = str(work.job.recipe_path), str(work.job.workspace.root)
    ended: Any = parts_in_order(*words, return_state=True)
    waits = ended.result()
    if waits is not None:
        raise waits
