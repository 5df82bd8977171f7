"""Received parts to their places under originals/: md5, fsync, the new name, the folder's fsync.

As many at a time as have come by then, so that all of them wait for the disk together.
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pipeline.artefacts.files import sync_folder, translated
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.header import EXTENSIONS, Picture, Unusable, glance, glance_into
from pipeline.download.parts import Part
from pipeline.download.quarantine import Promise

MANY = 4
MOST_TOGETHER = 16 * 1024 * 1024
"""From so many parts on, and up to so many bytes of them, one call for the whole file system is
cheaper than two for each part."""

SYNCFS = getattr(ctypes.CDLL(None), "syncfs", None)
"""The call for a whole file system, where there is one."""


@dataclass(frozen=True)
class Landed:
    """A file in its place."""

    picture: Picture
    bytes: int


class OtherBytes(Exception):
    """The md5 is not the one that was promised. The bytes are where they were."""


Arrival = tuple[Part, Promise]
"""A whole part, and what its post says of it."""
Placed = Landed | Exception
"""What became of it: `OtherBytes`; Unusable, and the part is removed; the disk's refusals."""


class Placing:
    """Where the parts of one dataset go. Any thread may use it."""

    def __init__(self, folder: DatasetFolder) -> None:
        self._folder = folder
        self._made: set[Path] = set()

    def place(self, arrivals: Sequence[Arrival]) -> dict[str, Placed]:
        """Each of `arrivals` to originals/ab/cd/MD5.ext; the end of each, by the promised md5.

        Raises nothing: every one of them is waited for.
        """
        try:
            with translated(self._folder.root):
                return self._place(arrivals)
        except Exception as error:  # noqa: BLE001 - the end of each item, whatever it is.
            return {promise.md5: error for _, promise in arrivals}

    def _place(self, arrivals: Sequence[Arrival]) -> dict[str, Placed]:
        """All of them step by step, so that they wait for the disk only twice."""
        ends: dict[str, Placed] = {}
        moves: dict[str, tuple[Path, Path]] = {}
        for part, promise in arrivals:
            with noted(ends, promise.md5, part.path):
                picture = _kept(part, promise)
                final = self._folder.original(promise.md5, picture.extension)
                moves[promise.md5] = part.path, final
                ends[promise.md5] = Landed(picture, part.length)
        size = sum(end.bytes for end in ends.values() if isinstance(end, Landed))
        one_call = len(moves) >= MANY and size <= MOST_TOGETHER and self._sync_all()
        if not one_call:
            _sync({md5: path for md5, (path, _) in moves.items()}, ends)
        for md5, (path, final) in moves.items():
            if isinstance(ends[md5], Landed):
                with noted(ends, md5, path):
                    self._move(path, final)
        if not (one_call and self._sync_all()):
            _sync({md5: final.parent for md5, (_, final) in moves.items()}, ends)
        for part, promise in arrivals:
            if isinstance(ends[promise.md5], Landed):
                part.forget()
        return ends

    def _move(self, path: Path, final: Path) -> None:
        """To a folder that is mostly new, and sometimes taken away by someone meanwhile."""
        if final.parent not in self._made:
            with suppress(FileExistsError, FileNotFoundError):
                os.mkdir(final.parent)
            self._made.add(final.parent)
        try:
            os.rename(path, final)
        except FileNotFoundError:
            final.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, final)

    def _sync_all(self) -> bool:
        """Whether all that was written to this file system was brought to the disk by one call."""
        if SYNCFS is None:
            return False
        descriptor = os.open(self._folder.root, os.O_RDONLY)
        try:
            return bool(SYNCFS(descriptor) == 0)
        finally:
            os.close(descriptor)


def _kept(part: Part, promise: Promise) -> Picture:
    """The picture that a part is, and all of the part in its file."""
    if part.digest_at_once() != promise.md5:
        raise OtherBytes
    content = part.in_memory
    try:
        if content is None:
            part.keep()
            return glance(part.path, EXTENSIONS, promise.most_pixels)
        # Before the file is made: to open one costs more than to look into it.
        picture = glance_into(BytesIO(content), EXTENSIONS, promise.most_pixels)
    except Unusable:
        part.discard()
        raise
    part.keep()
    return picture


@contextmanager
def noted(ends: dict[str, Placed], md5: str, path: Path) -> Iterator[None]:
    """What goes wrong with one part is told to the one that waits for it."""
    try:
        with translated(path):
            yield
    except Exception as error:  # noqa: BLE001 - one item's end, whatever it is.
        ends[md5] = error


def _sync(paths: dict[str, Path], ends: dict[str, Placed]) -> None:
    """Brings the path of each that is well to the disk; what fails is its end."""
    for md5, path in paths.items():
        if isinstance(ends[md5], Landed):
            with noted(ends, md5, path):
                sync_folder(path)  # A file's bytes alike.
