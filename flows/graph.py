"""The two flows, `data` and `build`: parts walked in order, each a task."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from prefect import flow

from flows.tasks import perform
from pipeline.artefacts.job import Job, Outcome


class Named(Protocol):
    """All that a flow needs to know of a part."""

    @property
    def name(self) -> str: ...


Part = TypeVar("Part", bound=Named)


def walk(kind: str, job: Job, parts: Sequence[Part], work: Callable[[Part], Outcome]) -> None:
    """Runs `parts` in order as one flow named `kind`. What a part raises crosses unchanged."""
    name = (job.build or job.datasets[0][1]).name

    # The parameters are for whoever looks at the run later. Job, progress and parts come by
    # closure: Prefect would store parameters as JSON, which they are not.
    @flow(name=kind, flow_run_name=f"{kind} {name}", persist_result=False, retries=0)
    def parts_in_order(recipe: str, workspace: str) -> None:
        for part in parts:
            perform(part.name, partial(work, part))

    parts_in_order(str(job.recipe_path), str(job.workspace.root))
