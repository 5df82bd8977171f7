"""The md5 of a file as its bytes come, worked out in a thread beside the receiving.

Whoever receives never waits for it, so long as it keeps up: bytes that lie in the network library's
buffer when a connection breaks are lost, and those that were taken from it are not.
"""

import asyncio
import hashlib
from collections import deque

Bytes = bytes | memoryview
MOST_BEHIND = 4 * 1024 * 1024
"""Bytes that may wait to be hashed, of each file."""


def new_md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)


class Md5:
    """Fed by one task of an event loop."""

    def __init__(self, begun: "hashlib._Hash | None" = None) -> None:
        self._hash = begun or new_md5()
        self._waiting: deque[Bytes] = deque()
        # Two counts, each written by one thread alone.
        self._fed = 0
        self._hashed = 0
        self._job: asyncio.Future[None] | None = None

    def update(self, chunk: Bytes) -> None:
        """Hashes at once: a thread costs more than a small file's bytes. Not after `follow`."""
        self._hash.update(chunk)

    def follow(self, chunk: Bytes) -> None:
        """Has the bytes hashed in a thread, behind those that wait already."""
        self._waiting.append(chunk)
        self._fed += len(chunk)
        if self._job is None or self._job.done():
            self._job = asyncio.get_running_loop().run_in_executor(None, self._catch_up)

    @property
    def is_behind(self) -> bool:
        """Whether more waits than should be kept in memory: then `settle`."""
        return self._fed - self._hashed > MOST_BEHIND

    def at_once(self) -> str:
        """The md5 of all that came, as 32 digits, where nothing waits to be hashed."""
        return self._hash.hexdigest()

    async def settle(self) -> str:
        """The md5 of all that came, as 32 digits."""
        while self._job is not None:
            await self._job
            # A job may end just before the last bytes are laid down.
            self._job = None
            if self._waiting:
                self._job = asyncio.get_running_loop().run_in_executor(None, self._catch_up)
        return self._hash.hexdigest()

    def _catch_up(self) -> None:
        while self._waiting:
            chunk = self._waiting.popleft()
            self._hash.update(chunk)
            self._hashed += len(chunk)
