"""Received parts to their places under originals/: md5, fsync, the new name, the folder's fsync.

In threads, because all of it waits for the disk, and as many parts at a time as have come by then:
to hand a thread one small file costs as much as to fetch it.
"""

import asyncio
import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pipeline.artefacts.files import sync_folder, translated
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.content import EXTENSIONS, Picture, Unusable, glance, glance_into
from pipeline.download.parts import Part
from pipeline.download.quarantine import Promise, put_aside

LANES = 2
"""Threads that land at the same time: while one waits for the disk, another hashes. More of them
take the interpreter's lock from each other and from the loop, with every call for a file."""
GATHERING = 0.04
"""Seconds for which the first of several parts waits for the others, for the same reason. Nothing
is held up by it: others are received meanwhile."""
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


@dataclass(frozen=True)
class _Arrival:
    part: Part
    promise: Promise
    end: "asyncio.Future[Landed]"


class Landing:
    """Where the parts of one dataset go. Used from one event loop at a time."""

    def __init__(self, folder: DatasetFolder) -> None:
        self._folder = folder
        self._waiting: list[_Arrival] = []
        self._gathering: asyncio.TimerHandle | None = None
        self._lanes = 0
        self._made: set[Path] = set()

    async def land(self, part: Part, promise: Promise) -> Landed:
        """A whole part to originals/ab/cd/MD5.ext, if its md5 is the one that was promised.

        Raises:
            NotPromised, StableMismatch: it is not; a picture is put aside.
            Unusable: it is no usable picture; the part is removed.
            DiskFullError, RequestError: the disk refuses.
        """
        end: asyncio.Future[Landed] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Arrival(part, promise, end))
        self._gather()
        return await end

    def close(self) -> None:
        """Begins nothing more: no one waits any longer."""
        if self._gathering is not None:
            self._gathering.cancel()
        self._waiting = []

    def _gather(self) -> None:
        if self._waiting and self._gathering is None and self._lanes < LANES:
            self._gathering = asyncio.get_running_loop().call_later(GATHERING, self._go)

    def _go(self) -> None:
        self._gathering = None
        self._lanes += 1
        arrivals, self._waiting = self._waiting, []
        work = asyncio.get_running_loop().run_in_executor(None, self._settle_all, arrivals)
        work.add_done_callback(lambda done: self._tell(arrivals, done.result()))

    def _tell(self, arrivals: Sequence[_Arrival], ends: Sequence[Landed | Exception]) -> None:
        self._lanes -= 1
        for arrival, end in zip(arrivals, ends, strict=True):
            if arrival.end.done():  # Whoever waited was stopped.
                continue
            if isinstance(end, Exception):
                arrival.end.set_exception(end)
            else:
                arrival.end.set_result(end)
        self._gather()

    def _settle_all(self, arrivals: Sequence[_Arrival]) -> list[Landed | Exception]:
        """The ends of `arrivals`, of which each is waited for: whatever happens, they are told."""
        try:
            with translated(self._folder.root):
                return self._settle(arrivals)
        except Exception as error:  # noqa: BLE001 - the end of each item, whatever it is.
            return [error] * len(arrivals)

    def _settle(self, arrivals: Sequence[_Arrival]) -> list[Landed | Exception]:
        """All of `arrivals` step by step, so that many of them wait for the disk only twice."""
        ends: dict[Path, Landed | Exception] = {}
        places: dict[Path, Path] = {}
        for arrival in arrivals:
            path = arrival.part.path
            with _noted(ends, path):
                picture = self._kept(arrival.part, arrival.promise)
                places[path] = self._folder.original(arrival.promise.md5, picture.extension)
                ends[path] = Landed(picture, arrival.part.length)
        size = sum(end.bytes for end in ends.values() if isinstance(end, Landed))
        one_call = len(places) >= MANY and size <= MOST_TOGETHER and self._sync_all()
        if not one_call:
            _sync(list(places), list(places), ends)
        for path, final in places.items():
            if isinstance(ends[path], Landed):
                with _noted(ends, path):
                    self._move(path, final)
        if not (one_call and self._sync_all()):
            _sync([final.parent for final in places.values()], list(places), ends)
        for arrival in arrivals:
            arrival.part.forget()
        return [ends[arrival.part.path] for arrival in arrivals]

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

    def _kept(self, part: Part, promise: Promise) -> Picture:
        if part.digest_at_once() != promise.md5:
            raise put_aside(part, promise, self._folder)
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
def _noted(ends: dict[Path, Landed | Exception], path: Path) -> Iterator[None]:
    """What goes wrong with one part is told to the one that waits for it."""
    try:
        with translated(path):
            yield
    except Exception as error:  # noqa: BLE001 - one item's end, whatever it is.
        ends[path] = error


def _sync(
    paths: Sequence[Path], parts: Sequence[Path], ends: dict[Path, Landed | Exception]
) -> None:
    """Brings `paths` to the disk; what fails is the end of the part in the same place."""
    for path, part in zip(paths, parts, strict=True):
        if isinstance(ends[part], Landed):
            with _noted(ends, part):
                sync_folder(path)  # A file's bytes alike.
