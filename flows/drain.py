"""`urushi drain`: takes the work off this machine gently, to update or to switch it off.

Pauses the pool, so that nothing new begins; puts a STOP file into the builds that run, which makes
training save and end; asks what does not train by SIGTERM; waits; and schedules what it stopped
again. The next `urushi up` lets the pool run, and the same runs go on.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import AwaitingRetry

from flows.alive import running, sign
from flows.flow_runs import in_states, workspace_of
from flows.generations import job_of
from flows.pool import connected, pause
from flows.tags import host_tag
from flows.worker import end_gently
from pipeline.artefacts.files import write_text
from pipeline.artefacts.locks import Holder, host
from pipeline.artefacts.workspace import Workspace

LOOK_SECONDS = 0.5
TERM_SECONDS = 60.0
"""Between SIGTERM and SIGKILL."""
START_SECONDS = 60.0
"""For a run that the worker has taken and whose process imports: until it lives, nobody can be
asked."""


def drain(workspace: Workspace, say: Callable[[str], None], seconds: float) -> list[str]:
    """Ends every scheduled run of `workspace` on this machine; returns the names of those stopped.

    Args:
        seconds: that training has to see the STOP file and save, before it is asked by a signal.

    Raises:
        UrushiError: the server does not answer.
    """
    with connected() as client:
        pause(client, True)
        _await_starting(client, workspace)
        here = {run: who for run, who in running(workspace).items() if who.host == host()}
        runs = {run: client.read_flow_run(UUID(run)) for run in here}
        stops = [stop for run in runs.values() if (stop := _stop(run)) is not None]
        for run in runs.values():
            say(f"{run.name}: asked to save and end")
        _wait(workspace, here, seconds)
        left = [who.pid for run, who in running(workspace).items() if run in here]
        if left:
            say("Still going after the wait; asking by signal.")
            end_gently(left, TERM_SECONDS)
        for stop in stops:
            # Whoever obeyed it removed it; one that nobody saw would stop the next run.
            stop.unlink(missing_ok=True)
        return [run.name for run in runs.values() if _goes_on_later(client, run)]


def _stop(run: FlowRun) -> Path | None:
    """Puts the STOP file where the run's training looks; None for runs that do not train."""
    job = job_of(run.parameters)
    if job is None or job.build is None or not job.folder.root.is_dir():
        return None
    write_text(job.folder.stop, "urushi drain\n")
    return job.folder.stop


def _await_starting(client: SyncPrefectClient, workspace: Workspace) -> None:
    """Waits until every run of this machine that was taken before the pause holds its lock."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and any(
        host_tag() in run.tags
        and workspace_of(run).root.resolve() == workspace.root
        and not sign(workspace, str(run.id)).alive
        for run in in_states(client, [StateType.PENDING, StateType.RUNNING])
    ):
        time.sleep(LOOK_SECONDS)


def _wait(workspace: Workspace, here: dict[str, Holder], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(run in here for run in running(workspace)):
        time.sleep(LOOK_SECONDS)


def _goes_on_later(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Schedules a run that we stopped again, in the paused pool; whether it was not finished."""
    after = client.read_flow_run(run.id).state
    if after is None or after.is_completed() or after.is_failed() or after.is_paused():
        return False
    client.set_flow_run_state(run.id, AwaitingRetry(scheduled_time=datetime.now(UTC)), force=True)
    return True
