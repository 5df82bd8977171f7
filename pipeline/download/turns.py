"""What all processes of this user know of a host: when its last turn was, and who is connected.

Files in a folder that is the same for all of them, each under flock: a process that dies gives its
place back by dying. Times are the machine's monotonic clock, which all processes share and no one
sets; a restart of the machine makes what was written void.
"""

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.errors import RequestError

NEVER = float("-inf")
LENGTH = 128
"""Bytes of a record: written in one piece, so that there is no half of one."""


@dataclass
class Turns:
    """Seconds of the monotonic clock."""

    last: float = NEVER
    held_until: float = NEVER


class Ledger:
    """The turns of one host: in memory, or in a file for all processes."""

    def __init__(self, path: Path | None = None) -> None:
        self._own = Turns()
        self._descriptor = None if path is None else _opened(path)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor or 0)

    @contextmanager
    def taken(self) -> Iterator[Turns]:
        """The turns, to be read and changed; others wait meanwhile. Takes microseconds."""
        if self._descriptor is None:
            yield self._own
            return
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            turns = _read(os.pread(self._descriptor, LENGTH, 0))
            before = (turns.last, turns.held_until)
            yield turns
            if (turns.last, turns.held_until) != before:
                record = f"{_boot()} {turns.last!r} {turns.held_until!r}"
                os.pwrite(self._descriptor, record.ljust(LENGTH).encode(), 0)
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


class Slots:
    """Connections to one host, so many for all processes together.

    Between requests that follow close upon each other a slot is not given back each time: `lease`
    is the seconds for which it may be kept so.
    """

    def __init__(self, folder: Path, host: str, count: int, lease: float = 0.0) -> None:
        self._lease = lease
        self._free = [_opened(folder / f"{file_name(host)}.slot{n}") for n in range(count)]
        self._locked: dict[int, float] = {}
        """Since when, of those that this process has, in use or kept."""
        self._used: set[int] = set()

    def claim(self) -> int | None:
        """A slot to be given back, or None where all are taken."""
        for slot in self._free:
            if slot in self._locked:
                break
            try:
                fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            self._locked[slot] = time.monotonic()
            break
        else:
            return None
        self._free.remove(slot)
        self._used.add(slot)
        return slot

    def release(self, slot: int) -> None:
        self._used.remove(slot)
        self._free.insert(0, slot)
        if time.monotonic() - self._locked[slot] >= self._lease:
            del self._locked[slot]
            fcntl.flock(slot, fcntl.LOCK_UN)

    def close(self) -> None:
        for slot in (*self._free, *self._used):
            os.close(slot)
        self._free, self._locked, self._used = [], {}, set()


def shared_folder() -> Path:
    """The folder in which this user's processes find each other.

    Raises:
        RequestError: it belongs to someone else.
    """
    own = os.getuid()
    named = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{own}")
    if named.is_dir() and os.access(named, os.W_OK):
        folder = named / "urushi"
    else:
        folder = Path(tempfile.gettempdir()) / f"urushi-{own}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != own:
        raise RequestError(
            f"{folder} belongs to someone else, and processes keep their turns there. "
            "Remove it, or set XDG_RUNTIME_DIR to a folder of your own."
        )
    return folder


def file_name(host: str) -> str:
    """A host and port as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", host)[:200]


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _read(record: bytes) -> Turns:
    try:
        boot, last, held_until = record.decode().split()
        if boot == _boot():
            return Turns(float(last), float(held_until))
    except ValueError:
        pass  # A file that is new, or that someone has written into: as if no one had had a turn.
    return Turns()


@cache
def _boot() -> str:
    """Names the time since the machine was started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
