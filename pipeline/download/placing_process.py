"""Small files that come by the hundred a second placed by a process of its own.

Each call for a file gives the interpreter's lock away and waits for it again, and a thread that
hashes, makes and renames files takes it from the loop that receives them thousands of times a
second. Bytes go to the process through memory that both have; what it does is placing.py's.
"""

import ctypes
import mmap
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.parts import part_of
from pipeline.download.placing import Arrival, Placed, Placing
from pipeline.download.quarantine import Promise
from pipeline.download.worker import Worker, answer_all

WORTH_IT = 32
"""Parts that came within one batch's time: at a site's own pace they hardly ever do."""
MEMORY = 64 * 1024 * 1024
"""Bytes of a batch at most. The system gives them as batches fill them."""
PATIENCE = 300.0
"""Seconds for a batch. A disk that takes longer is waited for in a thread."""
CAN = sys.platform == "linux" and hasattr(os, "memfd_create")
"""Whether the system has nameless memory to share and ends a process with its parent, and this
Python, which may be built for an older system, can ask for it."""
PR_SET_PDEATHSIG = 1

Question = list[tuple[Promise, int, int]]
"""Where in the memory the bytes of each part begin and end."""


class PlacingProcess:
    """The process of one dataset, begun when there is enough for it. Any thread may ask.

    Where it cannot be had, or is lost, it is done without: what it was given is there still.
    """

    def __init__(self, folder: DatasetFolder) -> None:
        self._folder = folder
        self._one_at_a_time = threading.Lock()
        self._is_over = not CAN
        self._is_ready = False
        self._worker: Worker | None = None
        self._memory: int | None = None

    def __del__(self) -> None:
        if self._memory is not None:
            os.close(self._memory)

    def place(self, arrivals: Sequence[Arrival]) -> dict[str, Placed]:
        """The ends of parts that are all in memory, as of Placing.place; none where it cannot."""
        size = sum(part.length for part, _ in arrivals)
        if self._is_over or len(arrivals) < WORTH_IT or size > MEMORY:
            return {}
        with self._one_at_a_time:
            try:
                return self._ask(arrivals) if self._has_begun() else {}
            except Exception:  # noqa: BLE001 - it is done without, whatever is wrong with it.
                self.close()
                return {}

    def close(self) -> None:
        """Ends the process, whatever it is at; no other is begun."""
        self._is_over = True
        if self._worker is not None:
            self._worker.kill()

    def _has_begun(self) -> bool:
        """Whether the process is there. It is not waited for: it takes longer than a batch."""
        if self._worker is None:
            self._memory = os.memfd_create("urushi")
            os.ftruncate(self._memory, MEMORY)
            self._worker = Worker(serve, self._folder.root, self._memory, files=[self._memory])
            if self._is_over:  # By now.
                self._worker.kill()
        elif not self._is_ready and self._worker.pipe.poll():
            self._worker.pipe.recv()
            self._is_ready = True
        return self._is_ready

    def _ask(self, arrivals: Sequence[Arrival]) -> dict[str, Placed]:
        assert self._worker is not None
        assert self._memory is not None
        pipe = self._worker.pipe
        question: Question = []
        contents = []
        end = 0
        for part, promise in arrivals:
            start, end = end, end + part.length
            question.append((promise, start, end))
            contents.append(part.in_memory or b"")
        # One call, which fails where a map of the memory would end the program with SIGBUS.
        if os.pwritev(self._memory, contents, 0) != end:
            raise OSError(f"not all of {end} bytes could be shared")
        pipe.send(question)
        if not pipe.poll(PATIENCE):
            raise TimeoutError
        ends: dict[str, Placed] = pipe.recv()
        for part, _ in arrivals:
            part.forget()
        return ends


def serve(descriptor: str, root: str, memory: str) -> None:
    """The process: places what it is told of until its parent closes the pipe, or is no more."""
    # What it might still write would be in the way of the run that comes after a killed one. The
    # signal comes with the end of the thread that began it: a lane's, which lasts as the loop does.
    # One system call may end after the parent's lock is free: milliseconds, and a run needs more
    # before it writes.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    folder = DatasetFolder(Path(root))
    placing = Placing(folder)
    whole = memoryview(mmap.mmap(int(memory), MEMORY))

    def arrival(promise: Promise, start: int, end: int) -> Arrival:
        part = part_of(folder, promise.md5)
        part.write(whole[start:end])
        return part, promise

    def answer(question: Question) -> dict[str, Placed]:
        return placing.place([arrival(*each) for each in question])

    answer_all(descriptor, answer)
