"""A ceiling on requests per second to one host, for all processes together."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.download.patience import LONGEST_OBEYED
from pipeline.download.turns import Ledger, file_name

MOST_SHARED = 1000.0
"""Turns per second."""
RECOVERY = 1000
"""Turns in which a pace that was brought to nothing would be the full one again."""


class Pace:
    """Gives turns at least 1 / per_second seconds apart, never a burst. Threads may share it.

    With a path, the turns are those of all processes that name the same one, each at its own pace:
    a turn comes no sooner after the last one of whichever process than its own interval.
    """

    def __init__(
        self,
        per_second: float,
        path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._full = self._rate = per_second
        self._clock = clock
        self._ledger = Ledger(path)
        self._held_until = clock()
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
        with self._lock, self._ledger.taken() as turns:
            now = self._clock()
            # A clock cannot have been there yet, and no pause is longer: someone else's writing.
            held = min(turns.held_until, now + LONGEST_OBEYED)
            last = min(turns.last, now)
            if held > max(now, self._held_until):
                self._slow_down(now, held)  # Another process was told; it is meant for all.
            free = max(last + 1 / self._rate, held)
            if now < free:
                return free - now
            turns.last = now
            self._rate = min(self._full, self._rate + self._full / RECOVERY)
            return 0.0

    def hold(self, seconds: float) -> None:
        """Gives no turn for so long, and then half as many: the site said that we are too quick.

        What requests already under way are told meanwhile lengthens the pause and no more. The
        pace grows again with each turn that goes well.
        """
        with self._lock, self._ledger.taken() as turns:
            now = self._clock()
            until = now + min(seconds, LONGEST_OBEYED)
            turns.held_until = max(turns.held_until, until)
            self._slow_down(now, until)

    def _slow_down(self, now: float, until: float) -> None:
        if now >= self._held_until:
            self._rate /= 2
        self._held_until = max(self._held_until, until)


def shared_pace(folder: Path, host: str, kind: str, per_second: float) -> Pace:
    """The pace of `kind` (api, files) of requests to `host`, shared through `folder`.

    Beyond MOST_SHARED no one is spared anything by taking turns, which takes longer than they last.
    """
    path = folder / f"{file_name(host)}.{kind}" if per_second <= MOST_SHARED else None
    return Pace(per_second, path)
