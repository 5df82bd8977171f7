"""The flow runs of our deployments as Prefect's server has them, and which are this machine's."""

from collections.abc import Iterable
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

from flows.tags import TAG
from pipeline.artefacts.workspace import Workspace

PAGE = 200


def in_states(client: SyncPrefectClient, types: Iterable[StateType]) -> list[FlowRun]:
    """All runs of our deployments that are in one of the states `types`."""
    wanted = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))),
        tags=FlowRunFilterTags(all_=[TAG]),
    )
    runs: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, limit=PAGE, offset=len(runs)
        )
        runs += page
        if len(page) < PAGE:
            return [run for run in runs if run.deployment_id is not None]


def workspace_of(run: FlowRun) -> Workspace:
    """The workspace that a run's parameters name: every flow of ours has one."""
    return Workspace(Path(str(run.parameters["workspace"])))
