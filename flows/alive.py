"""Which flow run a living process works for: a lock for each, WORKSPACE/flow_runs/ID.lock.

The operating system lets go of it when the process is gone, however it went. So a run that Prefect
believes alive and whose lock is free is dead, and no late heartbeat or busy machine can look so.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pipeline.artefacts.files import write_text
from pipeline.artefacts.locks import Holder, held, holder, is_locked
from pipeline.artefacts.records import Record
from pipeline.artefacts.workspace import Workspace
from pipeline.errors import BusyError

KEEP_SECONDS = 90 * 86_400.0
"""Locks of runs that ended longer ago are cleared away."""
LOOK_SECONDS = 0.2


class Returns(Record):
    """When a run was scheduled again after a crash. Seconds since 1970."""

    at: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sign:
    """What is known on this machine of a flow run's process."""

    holder: Holder | None
    """None: no process of the run ever got so far as to take its lock."""
    alive: bool


@contextmanager
def alive(workspace: Workspace, run: str, patience: float = 0.0) -> Iterator[None]:
    """Holds the lock of flow run `run` for this process.

    Args:
        patience: seconds to wait for a process of the same run that is about to be gone.

    Raises:
        BusyError: another process runs the same flow run.
    """
    with ExitStack() as stack:
        end = time.monotonic() + patience
        while True:
            try:
                stack.enter_context(held(_lock(workspace, run)))
                break
            except BusyError:
                if time.monotonic() >= end:
                    raise
                time.sleep(LOOK_SECONDS)
        yield


def sign(workspace: Workspace, run: str) -> Sign:
    """Whether a process works for `run`, and whose it was last."""
    path = _lock(workspace, run)
    return Sign(holder(path), is_locked(path.parent, path.name))


def returns(workspace: Workspace, run: str) -> tuple[float, ...]:
    """When `run` was scheduled again, oldest first."""
    try:
        return Returns.model_validate_json(_returns(workspace, run).read_bytes()).at
    except (FileNotFoundError, ValidationError):
        return ()


def count_return(workspace: Workspace, run: str, now: float) -> None:
    """Remembers that `run` is scheduled again."""
    kept = Returns(at=(*returns(workspace, run), now))
    write_text(_returns(workspace, run), kept.model_dump_json() + "\n")


def running(workspace: Workspace) -> dict[str, Holder]:
    """The flow runs that processes work for now, with the processes."""
    found = {}
    for path in sorted(workspace.flow_runs.glob("*.lock")):
        who = holder(path)
        if who is not None and is_locked(path.parent, path.name):
            found[path.stem] = who
    return found


def sweep_old(workspace: Workspace, now: float | None = None) -> None:
    """Clears away the files of runs that ended long ago."""
    limit = (time.time() if now is None else now) - KEEP_SECONDS
    for path in workspace.flow_runs.glob("*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < limit and not is_locked(path.parent, f"{path.stem}.lock"):
                path.unlink()


def _lock(workspace: Workspace, run: str) -> Path:
    return workspace.flow_runs / f"{run}.lock"


def _returns(workspace: Workspace, run: str) -> Path:
    return workspace.flow_runs / f"{run}.json"
