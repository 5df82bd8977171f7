"""What one LoRA module adds to one layer, whatever its form, as blocks of rows."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Delta(Protocol):
    """A module of an adapter file, read: strength · alpha / rank · up · down, or another form's."""

    @property
    def whole(self) -> bool:
        """Whether all rows must be asked for at once: a norm over them is part of the form."""

    def rows(self, weight: Tensor, first: int, strength: float) -> Tensor:
        """What to add to rows `first` and on of the layer's weight.

        weight: those rows of the sum so far, (rows, columns), float32 or float64; DoRA needs it.
        Returns a new tensor of the same shape and dtype, `strength` included.
        """


@dataclass(frozen=True)
class Term:
    """One addend's share in one tensor."""

    delta: Delta
    strength: float
    last: bool
    """Whether it is the merge's last addend, whose loss in the cast is measured."""
