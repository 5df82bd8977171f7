"""The one error of this room, with an exit code: merge/ stands without the program's own tree."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FAILED = 1
WRONG_INPUT = 2
DISK_FULL = 3

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)
"""The place is wrong, so the request is."""


class MergeError(Exception):
    """A merge that was refused or failed; nothing is left where the output should be.

    `exit_code`: 2 the input is wrong (default), 3 the disk is full, 1 anything else.
    """

    def __init__(self, message: str, exit_code: int = WRONG_INPUT) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write `out` into MergeError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise MergeError(
                f"No room left on the disk while writing {out}. Nothing was left half-written: "
                "free some space and run the same command again.",
                DISK_FULL,
            ) from error
        if error.errno in REFUSED:
            raise MergeError(
                f"{out} cannot be written: {error.strerror}. "
                "Choose another output, or give yourself the right to write there."
            ) from error
        raise MergeError(
            f"{out} could not be written: {error.strerror or error}. "
            "Check the disk and run the same command again.",
            FAILED,
        ) from error


def listed(names: list[str], most: int = 12) -> str:
    """Names for a message: the first few in full, the rest counted."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
