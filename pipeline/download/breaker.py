"""A site in trouble is left alone for a while: nothing but one request now and then asks after it.

A network that is away for an hour costs an hour, and not the run: no file is blamed for it.
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable

from pipeline.download.patience import Patience
from pipeline.errors import UrushiError

PROBE = 0.5
"""Seconds between looks at whether the one request that may go out has come back."""


class Breaker:
    """One per site and run; its threads and tasks share it."""

    def __init__(
        self,
        patience: Patience,
        say: Callable[[str], None],
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience = patience
        self._say = say
        self._rng = rng
        self._clock = clock
        self._lock = threading.Lock()
        self._ever_worked = False
        self._away_since: float | None = None
        self._until = 0.0
        self._times = 0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether the site is taken to be in trouble."""
        return self._away_since is not None

    def worked(self) -> None:
        """The site answered as one that is well."""
        with self._lock:
            self._ever_worked = True
            self._away_since = None
            self._times = 0
            self._probing = False

    def trip(self, why: str) -> None:
        """The site is in trouble: requests wait from now on.

        Raises:
            UrushiError: `why`, where it never worked in this run or has been away for too long.
        """
        with self._lock:
            now = self._clock()
            self._probing = False
            since = now if self._away_since is None else self._away_since
            if not self._ever_worked or now - since >= self._patience.outage:
                raise UrushiError(why)
            if now < self._until and self._away_since is not None:
                return  # Several were under way when it went down.
            self._away_since = since
            self._times += 1
            pause = self._patience.cooled(self._times, self._rng)
            self._until = now + pause
        self._say(f"{why} Waiting {pause:.0f} s, then trying again.")

    def claim(self) -> float:
        """0 where a request may go out, else the seconds after which to ask again."""
        with self._lock:
            if self._away_since is None:
                return 0.0
            remaining = self._until - self._clock()
            if remaining > 0:
                return remaining
            if self._probing:
                return PROBE
            self._probing = True
            return 0.0

    def wait(self) -> None:
        """Blocks until a request may go out."""
        while (delay := self.claim()) > 0:
            time.sleep(delay)

    async def ready(self) -> None:
        """Waits until a request may go out."""
        while (delay := self.claim()) > 0:
            await asyncio.sleep(delay)
