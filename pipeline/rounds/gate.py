"""The gate: did the round help, and what did it cost? Paired differences, never two raw losses.

A round must lower the held-out loss; significance is not asked for, which costs more good rounds
than bad ones. What must not be forgotten (the anchor set) never rejects a round: its strength is
shrunk until the anchor's loss stays in bounds. Rejecting instead learned nothing at all in our
measurements.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
ATTEMPTS = 2
"""A round that does not help is tried once more, then left out."""
RETRY_RATE = 0.5
"""Share of its rate at which it is tried again, with a new seed."""
ANCHOR_STEP = 0.25
"""Most that a round may add to the anchor loss it started from, as a share of it."""
SHRINKS = 5
"""Most evaluations of the anchor loss below the strength that was chosen."""
CLOSE = 0.03
"""A bracket of strengths this narrow, as a share of the chosen one, is not narrowed further."""


@dataclass(frozen=True)
class Verdict:
    """What the judging half says. Losses are means over its pictures."""

    before: float
    after: float
    low: float
    high: float
    """95 % bootstrap interval of the mean paired difference before - after."""

    @property
    def improves(self) -> bool:
        """The mean falls. Significance is not asked for: it costs more good rounds than bad."""
        return self.after < self.before


@dataclass(frozen=True)
class Shrunk:
    """What the anchor leaves of a strength. `tried` are (strength, anchor loss), in order."""

    strength: float
    tried: tuple[tuple[float, float], ...]


def judge(before: Sequence[float], after: Sequence[float], seed: int) -> Verdict:
    """Compares per-picture losses that were measured with common random numbers.

    Args:
        before, after: one loss per picture, in the same order.
        seed: of the bootstrap, so that the interval is the same whenever it is computed.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    differences = first - second
    picks = np.random.default_rng(seed).integers(
        0, len(differences), size=(RESAMPLES, len(differences))
    )
    low, high = np.percentile(differences[picks].mean(axis=1), [2.5, 97.5])
    return Verdict(float(first.mean()), float(second.mean()), float(low), float(high))


def ceiling(before: float, origin: float, total: float | None) -> float:
    """The most that the anchor loss may be after a round.

    Args:
        before: the anchor loss that the round starts from.
        origin: the origin's.
        total: most that all rounds together may add, as a share of the origin's; None: no end.
    """
    step = before * (1 + ANCHOR_STEP)
    return step if total is None else min(step, origin * (1 + total))


def shrink(anchor: Callable[[float], float], strength: float, most: float) -> Shrunk:
    """The largest strength up to `strength` whose anchor loss is at most `most`, nearly.

    At most 6 evaluations of `anchor`: at `strength`, and where that is too much, between 0 and it,
    at the zero of the parabola or secant through what is known, or halfway. 0 where nothing fits.
    """
    if strength == 0:
        return Shrunk(0.0, ())
    tried = [(strength, anchor(strength))]
    if tried[0][1] <= most:
        return Shrunk(strength, tuple(tried))
    tried.append((0.0, anchor(0.0)))
    low, high = tried[1], tried[0]
    if low[1] > most:
        return Shrunk(0.0, tuple(tried))
    for number in range(SHRINKS - 1):
        if high[0] - low[0] <= CLOSE * strength:
            break
        # From where it is lowest the loss rises like a square, so a root is the better first guess.
        share = (most - low[1]) / (high[1] - low[1])
        guess = low[0] + (high[0] - low[0]) * (share**0.5 if number == 0 else share)
        margin = 0.1 * (high[0] - low[0])
        guess = round(min(max(guess, low[0] + margin), high[0] - margin), 4)
        point = (guess, anchor(guess))
        tried.append(point)
        low, high = (point, high) if point[1] <= most else (low, point)
    return Shrunk(low[0], tuple(tried))
