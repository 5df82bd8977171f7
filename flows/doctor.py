"""`urushi doctor`: brings dead runs back, and makes up for missed nights once.

    urushi doctor            once; `urushi up` does it at its start and every 20 seconds

Looks at the runs of this machine that Prefect believes alive. One whose lock nobody holds is dead:
it is marked as crashed and the same run scheduled again, which goes on where it was. Runs that
are suspended or paused are none of its business, but for a decision whose time is over.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import AwaitingRetry, Cancelled, Crashed

from flows.alive import count_return, returns, sign, sweep_old
from flows.approval import settle
from flows.flow_runs import in_states, workspace_of
from flows.generations import job_of
from flows.pool import connected
from flows.tags import host_tag
from flows.verdicts import RETURN_SECONDS, Act, Case, Night, missed, verdict
from pipeline.artefacts.locks import host, is_locked
from pipeline.artefacts.runs import RUN_LOCK, run_root
from pipeline.artefacts.workspace import Workspace

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
    with connected() as client:
        found = [
            finding
            for run in in_states(client, SUSPECT)
            if (finding := _treat(client, run, now)) is not None
        ]
        found += [Finding(*settled) for settled in settle(client, host_tag())]
        return found + _missed(client, now, 60.0 if first else LATE_SECONDS)


def _treat(client: SyncPrefectClient, run: FlowRun, now: float) -> Finding | None:
    case = _case(run, now)
    if case.state == "CRASHED" and case.seconds > RECENT_SECONDS:
        return None
    act = verdict(case, host())
    if act is Act.LEAVE or _moved(client, run):
        return None
    if act is Act.BURY:
        client.set_flow_run_state(run.id, Cancelled(message="Its process is gone."), force=True)
        return Finding(run.name, "its process is gone; marked as cancelled, as was asked")
    if case.state != "CRASHED":
        told = "Its process is gone without a word: killed, or the machine went down."
        client.set_flow_run_state(run.id, Crashed(message=told), force=True)
    if act is Act.GIVE_UP:
        return Finding(run.name, "died again and again; left alone. Its logs say why")
    count_return(workspace_of(run), str(run.id), now)
    client.set_flow_run_state(run.id, AwaitingRetry(scheduled_time=datetime.now(UTC)), force=True)
    return Finding(run.name, "its process is gone; the same run is scheduled again and goes on")


def _moved(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether `run` has another state by now. Asked after the look at its lock: a run reports its
    end before its process, and so its lock, is gone."""
    return client.read_flow_run(run.id).state_id != run.state_id


def _case(run: FlowRun, now: float) -> Case:
    assert run.state is not None, "read with a filter on states"
    place = workspace_of(run)
    since = returns(place, str(run.id))
    return Case(
        state=run.state.type.value,
        seconds=now - run.state.timestamp.timestamp(),
        ours=host_tag() in run.tags,
        sign=sign(place, str(run.id)),
        busy=_is_busy(run),
        returns=sum(at > now - RETURN_SECONDS for at in since),
    )


def _is_busy(run: FlowRun) -> bool:
    """Whether some process, of this run or another, works on what the run is about."""
    job = job_of(run.parameters)
    if job is None:
        return False  # About no recipe, or the run will say better than we can what is wrong in it.
    root = run_root(job)
    # A trainer whose flow was killed may still be saving; it holds the folder of its round.
    inside = (path.parent for path in root.glob("rounds/*/*/.lock"))
    return is_locked(root, RUN_LOCK) or is_locked(root) or any(is_locked(path) for path in inside)


def _missed(client: SyncPrefectClient, now: float, late: float) -> list[Finding]:
    """Cancels all but one of a deployment's missed nights."""
    waiting = in_states(client, (StateType.SCHEDULED,))
    going = in_states(client, OCCUPYING) + [run for run in waiting if _began(run)]
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
