"""`urushi doctor`: brings dead runs back, and makes up for missed nights once.

    urushi doctor            once; `urushi up` does it at its start and every 20 seconds

Looks at the runs of this machine that Prefect believes alive. One whose lock nobody holds is dead:
it is marked as crashed and the same run scheduled again, which goes on where it was. Runs that
are suspended or paused are none of its business, but for a decision whose time is over.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectException
from prefect.states import AwaitingRetry, Cancelled, Crashed

from flows.alive import count_return, returns, sign, sweep_old
from flows.approval import settle
from flows.deploy import TAG, host_tag
from flows.verdicts import RETURN_SECONDS, Act, Case, Night, missed, verdict
from pipeline.artefacts.job import load_job
from pipeline.artefacts.locks import host, is_locked
from pipeline.artefacts.runs import RUN_LOCK, run_root
from pipeline.artefacts.workspace import Workspace
from pipeline.errors import UrushiError

PAGE = 200
LATE_SECONDS = 600.0
"""A night counts as missed when it is so late."""
SUSPECT = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.CRASHED)
OCCUPYING = (StateType.RUNNING, StateType.PENDING, StateType.PAUSED)
RECENT_SECONDS = 7 * 86_400.0
"""Crashed runs older than this are history."""


@dataclass(frozen=True)
class Finding:
    """One run, and what was done with it."""

    run: str
    """Its name."""
    what: str

    def __str__(self) -> str:
        return f"{self.run}: {self.what}"


def examine(workspace: Workspace, *, first: bool = False) -> list[Finding]:
    """Looks at every run once, and does what is to be done; says what that was.

    Args:
        first: no worker of ours runs yet, so missed nights need not be late to count as missed.

    Raises:
        UrushiError: the server does not answer.
    """
    now = time.time()
    sweep_old(workspace, now)
    try:
        with get_client(sync_client=True) as client:
            found = [
                finding
                for run in _runs(client, SUSPECT)
                if (finding := _treat(client, run, now)) is not None
            ]
            found += [Finding(*settled) for settled in settle(client, host_tag())]
            return found + _missed(client, now, 60.0 if first else LATE_SECONDS)
    except (httpx.HTTPError, PrefectException) as error:
        raise UrushiError(
            f"Prefect's server does not answer ({type(error).__name__}: {error}). "
            "`urushi up` runs one, or set PREFECT_API_URL to yours."
        ) from error


def _runs(client: SyncPrefectClient, types: Iterable[StateType]) -> list[FlowRun]:
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


def _treat(client: SyncPrefectClient, run: FlowRun, now: float) -> Finding | None:
    case = _case(run, now)
    if case.state == "CRASHED" and case.seconds > RECENT_SECONDS:
        return None
    act = verdict(case, host())
    if act is Act.LEAVE:
        return None
    if act is Act.BURY:
        client.set_flow_run_state(run.id, Cancelled(message="Its process is gone."), force=True)
        return Finding(run.name, "its process is gone; marked as cancelled, as was asked")
    if case.state != "CRASHED":
        told = "Its process is gone without a word: killed, or the machine went down."
        client.set_flow_run_state(run.id, Crashed(message=told), force=True)
    if act is Act.GIVE_UP:
        return Finding(run.name, "died again and again; left alone. Its logs say why")
    count_return(_workspace(run), str(run.id), now)
    client.set_flow_run_state(run.id, AwaitingRetry(scheduled_time=datetime.now(UTC)), force=True)
    return Finding(run.name, "its process is gone; the same run is scheduled again and goes on")


def _case(run: FlowRun, now: float) -> Case:
    assert run.state is not None, "read with a filter on states"
    place = _workspace(run)
    since = returns(place, str(run.id))
    return Case(
        state=run.state.type.value,
        seconds=now - run.state.timestamp.timestamp(),
        ours=host_tag() in run.tags,
        sign=sign(place, str(run.id)),
        busy=_is_busy(run),
        returns=sum(at > now - RETURN_SECONDS for at in since),
    )


def _workspace(run: FlowRun) -> Workspace:
    return Workspace(Path(str(run.parameters["workspace"])))


def _is_busy(run: FlowRun) -> bool:
    """Whether some process, of this run or another, works on what the run is about."""
    try:
        job = load_job(Path(str(run.parameters["recipe"])), _workspace(run).root)
    except UrushiError:
        return False  # The run will say what is wrong with its recipe better than we can.
    root = run_root(job)
    # A trainer whose flow was killed may still be saving; it holds the folder of its round.
    inside = (path.parent for path in root.glob("rounds/*/*/.lock"))
    return is_locked(root, RUN_LOCK) or is_locked(root) or any(is_locked(path) for path in inside)


def _missed(client: SyncPrefectClient, now: float, late: float) -> list[Finding]:
    """Cancels all but one of a deployment's missed nights."""
    waiting = _runs(client, (StateType.SCHEDULED,))
    going = _runs(client, OCCUPYING) + [run for run in waiting if _began(run)]
    names = {str(run.id): run.name for run in waiting}
    nights = [
        Night(str(run.id), str(run.deployment_id), run.expected_start_time.timestamp())
        for run in waiting
        if run.auto_scheduled and run.expected_start_time and not _began(run)
    ]
    occupied = frozenset(str(run.deployment_id) for run in going)
    findings = []
    for identity in missed(nights, occupied, now, late):
        run = next(run for run in waiting if str(run.id) == identity)
        told = "Missed, and another run of the same deployment stands for it."
        client.set_flow_run_state(run.id, Cancelled(message=told), force=True)
        findings.append(Finding(names[identity], "missed its time; a later run stands for it"))
    return findings


def _began(run: FlowRun) -> bool:
    """Whether a run that waits has run before: it comes back, and is no missed night."""
    return run.run_count > 0 or (run.state is not None and run.state.name == "AwaitingRetry")
