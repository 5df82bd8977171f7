"""Strangers' pictures decoded in processes of their own, each within the memory its size can need.

A file that makes a decoder explode or crash ends that process, and is a row with a reason; the
download goes on, and the next picture gets another process.
"""

import atexit
import os
import queue
import signal
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from pipeline.download.content import examine
from pipeline.download.header import Picture, Unusable, glance
from pipeline.download.likeness import Looks
from pipeline.download.worker import Worker, answer_all
from pipeline.errors import UrushiError

COUNT = 2
"""Processes at most; the second starts when the first is busy."""
BYTES_A_PIXEL = 40
"""Progressive JPEG keeps 6 to 8 of coefficients, WebP two canvases of 4; then come the picture, its
RGBA copy and the bytes of that, 4 each."""
SPARE = 256 * 1024 * 1024
"""Bytes of address space beside the pixels, for libraries and what they set aside."""
PATIENCE = 300.0
"""Seconds: the largest picture that a booru takes is decoded in a tenth of that."""

Question = tuple[Path, tuple[str, ...], int]
"""What `examine` is asked."""
Answer = tuple[Picture, Looks] | Unusable | OSError


class Decoders:
    """Processes that decode, started when first needed. Any thread may ask."""

    def __init__(self, count: int = COUNT, *, a_pixel: int = BYTES_A_PIXEL, spare: int = SPARE):
        self._limits = (a_pixel, spare)
        # Last in, first out: a second process starts only where the first one is busy.
        self._free: queue.LifoQueue[_Decoder | None] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(None)

    def examine(
        self, path: Path, extensions: tuple[str, ...], most_pixels: int
    ) -> tuple[Picture, Looks]:
        """As `content.examine`, which does it there.

        Raises:
            Unusable: also where the decoder crashed, wanted too much memory or came to no end.
            OSError: the file cannot be read at all.
            UrushiError: no such process can be started, or something kills them.
        """
        question = (path, extensions, most_pixels)
        try:
            answer = self._ask(question)
        except _Failed:
            try:  # Once more: a picture is not judged by what befell a process, or by its age.
                answer = self._ask(question, fresh=True)
            except _Failed as error:
                raise Unusable(str(error)) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ask(self, question: Question, *, fresh: bool = False) -> Answer:
        decoder = self._free.get()
        try:
            if fresh and decoder is not None:
                decoder.end()
                decoder = None
            decoder = decoder or self._begun()
            answer = decoder.ask(question)
        except BaseException:
            if decoder is not None:
                decoder.end()
            self._free.put(None)
            raise
        self._free.put(decoder)
        return answer

    def _begun(self) -> "_Decoder":
        try:
            return _Decoder(*self._limits)
        except OSError as error:  # The machine's, or a limit's: no picture is to blame.
            raise UrushiError(
                f"A process to decode pictures in cannot be started: {error}. "
                "Nothing is lost: run the same command again."
            ) from error

    def close(self) -> None:
        """Ends the processes that have nothing to do; who asks later has others started."""
        places = 0
        with suppress(queue.Empty):
            while True:
                decoder = self._free.get_nowait()
                places += 1
                if decoder is not None:
                    decoder.end()
        for _ in range(places):
            self._free.put(None)


@lru_cache(maxsize=1)
def _decoders(process: int) -> Decoders:
    found = Decoders()
    atexit.register(found.close)
    return found


def decoders() -> Decoders:
    """This process's: several downloads share them, and a fork begins with none."""
    return _decoders(os.getpid())


class _Failed(Exception):
    """What befell a process that should have answered: a clause."""


class _Decoder:
    """One process, asked one thing at a time."""

    def __init__(self, a_pixel: int, spare: int) -> None:
        self._worker = Worker(serve, a_pixel, spare)
        self._pipe = self._worker.pipe
        try:
            self._pipe.recv()  # Before it has said that it is there, nothing is a picture's fault.
        except (EOFError, ConnectionError):
            raise UrushiError(
                "A process to decode pictures in does not start "
                f"({self._worker.how_it_ended()}). Above stands what Python says of it."
            ) from None

    def ask(self, question: Question) -> Answer:
        """Raises _Failed, Unusable where no answer comes; the process is of no more use then."""
        try:
            self._pipe.send(question)
            if not self._pipe.poll(PATIENCE):
                raise Unusable(f"its decoder came to no end within {PATIENCE:.0f} s")
            answer: Answer | MemoryError = self._pipe.recv()
        except (EOFError, ConnectionError):
            how = self._worker.how_it_ended()
            if how == signal.SIGKILL.name:  # No decoder does that to itself.
                raise UrushiError(
                    "A process that decodes pictures was killed, most likely for want of memory. "
                    "Nothing is lost: run the same command again."
                ) from None
            raise _Failed(f"its decoder crashed ({how})") from None
        if isinstance(answer, MemoryError):
            raise _Failed("its decoder wants more memory than a picture of its size can need")
        return answer

    def end(self) -> None:
        # At once: an error that someone keeps would keep the pipe with it.
        self._pipe.close()
        self._worker.kill()


def serve(descriptor: str, a_pixel: str, spare: str) -> None:
    """The process: answers what comes through the pipe until its other end is closed."""
    at_rest = _mapped()
    least, each = at_rest + int(spare), int(a_pixel)
    answer_all(descriptor, lambda question: _answer(question, least, each))


def _answer(question: Question, least: int, a_pixel: int) -> Answer | MemoryError:
    try:
        picture = glance(*question)  # Only the header: what the pixels will take is not known yet.
        _allow(least + a_pixel * picture.size.area)
        return examine(*question)
    except (Unusable, OSError) as error:
        return error
    except MemoryError:
        return MemoryError()  # Without what the traceback holds.


def _allow(most: int) -> None:
    """Limits this process's address space, in bytes, where the system can say what it has now."""
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))


def _mapped() -> int:
    """Bytes of address space in use; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
