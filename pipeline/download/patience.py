"""How long to wait and how often to try: backoff with jitter, and a site's own word on it."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_OBEYED = 3600.0
"""Seconds. A site that asks for more is asked again after an hour."""


@dataclass(frozen=True)
class Patience:
    """All times are in seconds."""

    tries: int = 5
    """Attempts at one request before it counts as failed."""
    first_wait: float = 0.5
    """Doubled with each failure."""
    longest_wait: float = 30.0
    throttled_wait: float = 60.0
    """After "too many requests" without a word on how long; doubled each time."""
    throttled_longest: float = 900.0
    throttled_tries: int = 6
    connect: float = 10.0
    silence: float = 30.0
    """Without a byte, after which a connection is given up. There is no limit to a whole file: it
    may be large and the line slow."""

    answer: float = 120.0
    """For the head of an answer, however its bytes trickle in."""
    page: float = 300.0
    """For the body of an API's answer: a full page, through a line of a telephone's."""
    slow: float = 4096.0
    """Bytes per second; a file that comes more slowly over `slow_for` is asked for anew."""
    slow_for: float = 60.0
    cool_down: float = 30.0
    """After a site is found in trouble, before it is tried again; doubled each time."""
    cool_down_longest: float = 900.0
    outage: float = 6 * 3600.0
    """That a site which worked before may be away, before the run gives up."""

    def wait(self, failures: int, rng: random.Random) -> float:
        """Before trying again after the `failures`-th failure in a row, from 1."""
        full = min(self.longest_wait, self.first_wait * 2.0 ** (failures - 1))
        return full * rng.uniform(0.5, 1.0)

    def cooled(self, times: int, rng: random.Random) -> float:
        """Before trying a site in trouble for the `times`-th time, from 1."""
        full = min(self.cool_down_longest, self.cool_down * 2.0 ** (times - 1))
        return full * rng.uniform(0.5, 1.0)

    def throttled(self, times: int, retry_after: str | None) -> float:
        """After the `times`-th answer in a row that says we are too quick, from 1."""
        asked = seconds_asked(retry_after)
        if asked is not None:
            return asked
        return min(self.throttled_longest, self.throttled_wait * 2.0 ** (times - 1))


def seconds_asked(retry_after: str | None) -> float | None:
    """A Retry-After header, a number or a date, in seconds from now; None where it says nothing."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            until = parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        if until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        seconds = (until - datetime.now(UTC)).total_seconds()
    if not seconds >= 0:  # Negative, or not a number at all.
        return None
    return min(seconds, LONGEST_OBEYED)
