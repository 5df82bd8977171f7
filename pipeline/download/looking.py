"""The looks at files that have landed, a few behind the download, which does not wait for them."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from pipeline.download.examine import AHEAD, THREADS, Examiner
from pipeline.download.header import Unusable
from pipeline.download.likeness import Looks
from pipeline.errors import UrushiError


class Looking:
    """Looks at files in threads of its own. Made and used inside one event loop."""

    def __init__(self, examiner: Examiner) -> None:
        self._examiner = examiner
        self._pool = ThreadPoolExecutor(THREADS)
        self._under_way: set[asyncio.Task[None]] = set()
        self._found: list[tuple[str, str, Looks | Unusable]] = []

    async def begin(self, md5: str, extension: str) -> None:
        """Hands a file to the threads; waits where they are behind, as memory is not endless."""
        if len(self._under_way) >= AHEAD:
            await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._look(md5, extension))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def finish(self) -> None:
        """Waits for all that was begun."""
        await asyncio.gather(*self._under_way)

    def write_down(self) -> None:
        """Notes what was found of files that the store has."""
        found, self._found = self._found, []
        for one in found:
            self._examiner.note(*one)

    def close(self) -> None:
        """Lets the looks under way come to their end; what they find is found again later."""
        for task in self._under_way:
            task.cancel()
        self._pool.shutdown(cancel_futures=True)

    async def _look(self, md5: str, extension: str) -> None:
        loop = asyncio.get_running_loop()
        # A disk that cannot be read, or no process to decode in: the look after the download tells.
        with suppress(OSError, UrushiError):
            found = await loop.run_in_executor(self._pool, self._examiner.look, md5, extension)
            self._found.append((md5, extension, found))
