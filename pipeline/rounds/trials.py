"""The peak learning rate by short trials, each judged by its held-out loss. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

TIE = 1e-3
"""Of the loss: a rate that is no better than a lower one by more than this is not taken, since a
rate that is too high is what makes rounds unstable."""


@dataclass(frozen=True)
class Trials:
    """(rate, held-out loss) by rising rate, and the rate to train with."""

    tried: tuple[tuple[float, float], ...]
    best: float


def tune(loss: Callable[[float], float], rates: Sequence[float]) -> Trials:
    """Evaluates `loss` once at each rate; takes the lowest rate that is as good as the best.

    `loss` trains a short while at a rate from the same start and says the held-out loss after it.
    """
    tried = tuple((rate, loss(rate)) for rate in sorted(rates))
    least = min(value for _, value in tried)
    return Trials(tried, next(rate for rate, value in tried if value <= least * (1 + TIE)))
