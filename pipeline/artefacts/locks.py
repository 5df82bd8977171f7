"""One process per dataset and per build, by flock: it cannot go stale, it dies with its holder."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts.files import sweep, translated
from pipeline.errors import BusyError

PATIENCE = 8
"""Attempts at a lock, over a quarter of a second."""


@dataclass(frozen=True)
class Holder:
    """Who took a lock last, and holds it where it is held."""

    pid: int
    host: str
    """As the machine calls itself; folders may be shared by several."""

    def __str__(self) -> str:
        return f"{self.pid}" if self.host == host() else f"{self.pid} on {self.host}"


def host() -> str:
    """This machine's name."""
    return socket.gethostname()


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
        if not take(descriptor):
            raise BusyError(
                f"{path.parent} is being worked on by process {holder(descriptor) or 'unknown'}. "
                "Wait for it, or stop it first."
            )
        yield
    finally:
        os.close(descriptor)


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Holds `folder` once whoever has it lets go. What is in it may all be removed: the lock is a
    file beside it, and not the folder itself, which NFS cannot lock."""
    lock = folder.with_name(f".{folder.name}.lock")
    with translated(lock):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def take(descriptor: int) -> bool:
    """Takes the lock of an open file and signs it; whether it was free.

    Tries for a moment: `is_locked` holds it for the blink that a look takes.
    """
    for attempt in range(PATIENCE):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01 * attempt)
        else:
            _sign(descriptor)
            return True
    return False


def wait_for(descriptor: int) -> None:
    """Takes the lock of an open file once it is free, and signs it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    _sign(descriptor)


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()} {host()}".encode(), 0)


def holder(lock: int | Path) -> Holder | None:
    """Who signed a lock file, given as a path or an open descriptor; None where nobody did."""
    try:
        text = os.pread(lock, 512, 0) if isinstance(lock, int) else lock.read_bytes()
    except FileNotFoundError:
        return None
    pid, _, name = text.decode(errors="replace").strip().partition(" ")
    return Holder(int(pid), name or host()) if pid.isdecimal() else None


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
