"""A ceiling on requests per second to one host."""

import asyncio
import threading
import time
from collections.abc import Callable


class Pace:
    """Gives turns at least 1 / per_second seconds apart, never a burst. Threads may share it."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 1.0 / per_second
        self._clock = clock
        self._next = clock()
        self._held_until = self._next
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Blocks until it is one's turn."""
        while (delay := self.claim()) > 0:
            time.sleep(delay)

    async def turn(self) -> None:
        """Waits until it is one's turn."""
        while (delay := self.claim()) > 0:
            await asyncio.sleep(delay)

    def claim(self) -> float:
        """Takes the turn and returns 0, or returns the seconds until the next one is free."""
        with self._lock:
            now = self._clock()
            if now < self._next:
                return self._next - now
            self._next = now + self._interval
            return 0.0

    def hold(self, seconds: float) -> None:
        """Gives no turn for so long, and then half as many: the site said that we are too quick.

        What requests already under way are told meanwhile lengthens the pause and no more.
        """
        with self._lock:
            now = self._clock()
            if now >= self._held_until:
                self._interval *= 2
            self._held_until = max(self._held_until, now + seconds)
            self._next = max(self._next, self._held_until)
