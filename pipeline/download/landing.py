"""Received parts on their way to their places: as many together as have come by then.

In threads, because all of it waits for the disk. Many at a time, because to hand a thread one small
file costs as much as to fetch it; and in a process of its own where even threads cost too much.
"""

import asyncio
from collections.abc import Sequence

from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.parts import Part
from pipeline.download.placing import Arrival, Landed, OtherBytes, Placed, Placing, noted
from pipeline.download.placing_process import PlacingProcess
from pipeline.download.quarantine import Promise, put_aside

LANES = 2
"""Threads that land at the same time: while one waits for the disk, another hashes. More of them
take the interpreter's lock from each other and from the loop, with every call for a file."""
GATHERING = 0.04
"""Seconds for which the first of several parts waits for the others, for the same reason. Nothing
is held up by it: others are received meanwhile."""


class Landing:
    """Where the parts of one dataset go. Used from one event loop at a time."""

    def __init__(self, folder: DatasetFolder) -> None:
        self._folder = folder
        self._placing = Placing(folder)
        self._process = PlacingProcess(folder)
        self._waiting: list[tuple[Arrival, asyncio.Future[Landed]]] = []
        self._gathering: asyncio.TimerHandle | None = None
        self._lanes = 0

    async def land(self, part: Part, promise: Promise) -> Landed:
        """A whole part to originals/ab/cd/MD5.ext, if its md5 is the one that was promised.

        Raises:
            NotPromised, StableMismatch: it is not; a picture is put aside.
            Unusable: it is no usable picture; the part is removed.
            DiskFullError, RequestError: the disk refuses.
        """
        end: asyncio.Future[Landed] = asyncio.get_running_loop().create_future()
        self._waiting.append(((part, promise), end))
        self._gather()
        return await end

    def close(self) -> None:
        """Begins nothing more: no one waits any longer. What threads have begun they finish."""
        if self._gathering is not None:
            self._gathering.cancel()
        self._waiting = []
        self._process.close()

    def _gather(self) -> None:
        if self._waiting and self._gathering is None and self._lanes < LANES:
            self._gathering = asyncio.get_running_loop().call_later(GATHERING, self._go)

    def _go(self) -> None:
        self._gathering = None
        self._lanes += 1
        waiting, self._waiting = self._waiting, []
        arrivals = [arrival for arrival, _ in waiting]
        work = asyncio.get_running_loop().run_in_executor(None, self._place, arrivals)
        told = [end for _, end in waiting]
        work.add_done_callback(lambda done: self._tell(told, done))

    def _tell(
        self, waiting: Sequence["asyncio.Future[Landed]"], done: "asyncio.Future[list[Placed]]"
    ) -> None:
        self._lanes -= 1
        failure = done.exception()
        ends = done.result() if failure is None else [failure] * len(waiting)
        for told, end in zip(waiting, ends, strict=True):
            if told.done():  # Whoever waited was stopped.
                continue
            if isinstance(end, Landed):
                told.set_result(end)
            else:
                told.set_exception(end)
        self._gather()

    def _place(self, arrivals: Sequence[Arrival]) -> list[Placed]:
        """The end of each, in a thread."""
        small = [arrival for arrival in arrivals if arrival[0].is_in_memory]
        ends = self._process.place(small)
        ends |= self._placing.place([a for a in arrivals if a[1].md5 not in ends])
        for part, promise in arrivals:
            if isinstance(ends[promise.md5], OtherBytes):
                with noted(ends, promise.md5, part.path):
                    raise put_aside(part, promise, self._folder)
        return [ends[promise.md5] for _, promise in arrivals]
