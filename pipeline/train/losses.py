"""The losses of a round's steps: left on the device, looked at together every so many steps.

Reading one number off a GPU makes the processor wait until all before it is done, so the loop does
not read any inside a step.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pipeline.errors import UrushiError

WINDOW = 50
"""Steps of the moving average, and of what a divergence is measured by."""


class Losses:
    """Every step's loss so far.

    Args:
        known: of the steps before this process.
        divergence: how many times its beginning the moving average may reach.
        remedy: says what a person may do where it goes wrong.
    """

    def __init__(
        self, known: Iterable[float], divergence: float, remedy: Callable[[], str]
    ) -> None:
        self.values = list(known)
        self._divergence, self._remedy = divergence, remedy
        self._pending: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Takes one step's loss, () on any device, without looking at it."""
        self._pending.append(loss.detach())

    def gather(self, total: Callable[[Tensor], Tensor] = lambda own: own) -> None:
        """Looks at what was added since the last time.

        Args:
            total: (N,) of this device into (N,) of all devices.

        Raises:
            UrushiError: a loss is not finite, or the average of the last steps is far above that of
                the first ones. Nothing has been saved of the steps since the last look.
        """
        if not self._pending:
            return
        values = total(torch.stack(self._pending)).tolist()
        self._pending = []
        for value in values:
            self.values.append(value)
            if not math.isfinite(value):
                self._stop(f"The loss is {value} at step {len(self.values)}.")
        if len(self.values) >= 2 * WINDOW:
            first = sum(self.values[:WINDOW]) / WINDOW
            if self.mean > self._divergence * first:
                self._stop(
                    f"The loss grows: {self.mean:.4f} over the last {WINDOW} steps up to "
                    f"{len(self.values)}, {first:.4f} over the first."
                )

    def _stop(self, what: str) -> None:
        raise UrushiError(f"{what} {self._remedy()}")

    @property
    def mean(self) -> float:
        """Of the last steps that were looked at; 0 where there is none."""
        tail = self.values[-WINDOW:]
        return sum(tail) / max(1, len(tail))
