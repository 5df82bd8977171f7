"""A hidden name beside an output: locked by its writer, swept once that is dead, then swapped in.

`.NAME.N.PID.part` is for people; who is alive is told by the lock (flock) that a writer holds as
long as it lives. A process number would be taken for another's after a while, and on a folder that
several machines or containers share it says nothing.
"""

import ctypes
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
"""What says that a file system knows no locks: then nothing of it is swept."""

NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
"""What says that two folders cannot change names in one step."""

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux' renameat2(2)."""

_NUMBERS = count()


@contextmanager
def claimed(out: Path, folder: bool) -> Iterator[Path]:
    """A new empty file or folder beside `out`, removed at the end unless it was swapped in.

    No other process or thread uses its name, and none sweeps it while this one lives.
    """
    temporary, lock = _claim(out, folder)
    try:
        yield temporary
    finally:
        # What stands there after a swap of folders is the old output.
        remove(temporary)
        os.close(lock)


def _claim(out: Path, folder: bool) -> tuple[Path, int]:
    while True:
        temporary = out.with_name(f".{out.name}.{next(_NUMBERS)}.{os.getpid()}.part")
        try:
            if folder:
                temporary.mkdir()
            else:
                temporary.touch(exist_ok=False)
        except FileExistsError:
            continue  # Of another machine's process of the same number.
        lock = os.open(temporary, os.O_RDONLY)
        _lock(lock, wait=True)
        if _is_at(temporary, lock):
            return temporary, lock
        os.close(lock)  # Somebody swept it before it was locked.


def sweep(out: Path) -> None:
    """Removes what dead writers of `out` left beside it."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.\d+\.\d+\.part")
    for leftover in out.parent.iterdir():
        if not pattern.fullmatch(leftover.name):
            continue
        try:
            lock = os.open(leftover, os.O_RDONLY)
        except OSError:
            continue  # Gone by now, or not ours to open.
        try:
            if _lock(lock, wait=False) and _is_at(leftover, lock):
                with suppress(OSError):  # Another user's: no reason not to merge.
                    remove(leftover)
        finally:
            os.close(lock)


def swap(temporary: Path, out: Path) -> None:
    """`temporary` becomes `out`; an old folder of that name is left at `temporary`.

    One rename, or one exchange of names: a kill leaves the old output or the new one. Where the
    file system cannot exchange, an old folder takes two renames, and a kill between them neither.
    """
    if not temporary.is_dir() or not out.exists():
        temporary.replace(out)
    elif not _exchange(temporary, out):
        aside = temporary.with_name(f".{out.name}.{next(_NUMBERS)}.{os.getpid()}.part")
        out.rename(aside)
        temporary.rename(out)
        remove(aside)


def remove(path: Path) -> None:
    """A file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _lock(descriptor: int, wait: bool) -> bool:
    """Whether it is locked now; False where another holds it, or there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code not in NO_EXCHANGE:
        raise OSError(code, os.strerror(code), str(other))
    return False
