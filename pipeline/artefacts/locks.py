"""One process per dataset and per build, by flock: it cannot go stale, it dies with its holder."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.artefacts.files import sweep, translated
from pipeline.errors import BusyError

PATIENCE = 8
"""Attempts at a lock, over a quarter of a second."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process and clears what a killed one left half-written there.

    Raises:
        BusyError: another process holds it.
    """
    with held(folder / ".lock"):
        sweep(folder)
        yield


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Holds the lock file `path` for this process; its folder is what is being worked on.

    Raises:
        BusyError: another process holds it.
    """
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _taken(descriptor):
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise BusyError(
                f"{path.parent} is being worked on by process {holder}. "
                "Wait for it, or stop it first."
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    """Takes the lock. Tries for a moment: `is_locked` holds it for the blink that a look takes."""
    for attempt in range(PATIENCE):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01 * attempt)
        else:
            return True
    return False


def is_locked(folder: Path, name: str = ".lock") -> bool:
    """Whether some process works on `folder` now."""
    path = folder / name
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
