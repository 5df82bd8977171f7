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
from pipeline.download.placing import Arrival, End, Placing
from pipeline.download.quarantine import Promise
from pipeline.download.worker import Worker, answer_all

WORTH_IT = 32
"""Parts that came within one batch's time: at a site's own pace they never do."""
MEMORY = 64 * 1024 * 1024
"""Bytes of a batch at most. The system gives them as batches fill them."""
CAN = sys.platform == "linux"
"""Whether the system has nameless memory to share, and ends a process with its parent."""
PR_SET_PDEATHSIG = 1

Question = list[tuple[Promise, int, int]]
"""Where in the memory the bytes of each part begin and end."""


class Beside:
    """The process of one dataset, begun when there is enough for it. Any thread may ask.

    Where it cannot be had, or is lost, it is done without: what it was given is there still.
    """

    def __init__(self, folder: DatasetFolder) -> None:
        self._folder = folder
        self._one_at_a_time = threading.Lock()
        self._is_over = not CAN
        self._worker: Worker | None = None
        self._is_ready = False
        self._memory: mmap.mmap | None = None

    def place(self, arrivals: Sequence[Arrival]) -> dict[str, End]:
        """The ends of parts that are all in memory, as of Placing.place; none where it cannot."""
        size = sum(part.length for part, _ in arrivals)
        if self._is_over or len(arrivals) < WORTH_IT or size > MEMORY:
            return {}
        with self._one_at_a_time:
            try:
                return self._ask(arrivals) if self._has_begun() else {}
            except (EOFError, OSError):
                self.close()
                return {}

    def close(self) -> None:
        """Ends the process, whatever it is at; no other is begun."""
        self._is_over = True
        if self._worker is not None:
            self._worker.kill()

    def _has_begun(self) -> bool:
        """Whether the process is there. It is not waited for: it takes longer than a batch."""
        if self._is_over:
            return False
        if self._worker is None:
            self._begin()
        elif not self._is_ready and self._worker.pipe.poll():
            self._worker.pipe.recv()
            self._is_ready = True
        return self._is_ready

    def _begin(self) -> None:
        descriptor = os.memfd_create("urushi")
        try:
            os.ftruncate(descriptor, MEMORY)
            self._memory = mmap.mmap(descriptor, MEMORY)
            self._worker = Worker(serve, self._folder.root, descriptor, files=[descriptor])
        finally:
            os.close(descriptor)
        if self._is_over:  # By now.
            self._worker.kill()

    def _ask(self, arrivals: Sequence[Arrival]) -> dict[str, End]:
        assert self._worker is not None
        assert self._memory is not None
        question: Question = []
        start = 0
        for part, promise in arrivals:
            end = start + part.length
            self._memory[start:end] = part.in_memory or b""
            question.append((promise, start, end))
            start = end
        self._worker.pipe.send(question)
        ends: dict[str, End] = self._worker.pipe.recv()
        for part, _ in arrivals:
            part.forget()
        return ends


def serve(descriptor: str, root: str, memory: str) -> None:
    """The process: places what it is told of until its parent closes the pipe, or is no more."""
    # What it might still write would be in the way of the run that comes after a killed one. The
    # signal comes with the end of the thread that began it: a lane's, which lasts as the loop does.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    folder = DatasetFolder(Path(root))
    placing = Placing(folder)
    whole = memoryview(mmap.mmap(int(memory), MEMORY))
    os.close(int(memory))

    def arrival(promise: Promise, start: int, end: int) -> Arrival:
        part = part_of(folder, promise.md5)
        part.write(whole[start:end])
        return part, promise

    def answer(question: Question) -> dict[str, End]:
        return placing.place([arrival(*each) for each in question])

    answer_all(descriptor, answer)
