"""The gate: did the round help? Paired differences on the judging half, never two raw losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


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
