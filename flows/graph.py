"""The flows as Prefect sees them: parts walked in order, each a task, watched by artifacts."""

from dataclasses import replace
from functools import partial

from prefect import flow

from flows.artifacts import Artifacts
from flows.progress import Published
from flows.tasks import perform
from flows.work import Work
from pipeline.artefacts.runs import run_root


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
    def parts_in_order(recipe: str, workspace: str) -> None:
        walk(work)

    parts_in_order(str(work.job.recipe_path), str(work.job.workspace.root))
