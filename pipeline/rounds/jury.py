"""The held-out pictures of one or several datasets as one set, which judges strength vectors."""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.artefacts.strength import Strength
from pipeline.progress import Bar
from pipeline.rounds.evaluate import HeldOut, Losses
from pipeline.rounds.pictures import Pictures
from pipeline.rounds.refit import Quadratic

At = Callable[[Sequence[float]], Sequence[Strength]]


class Jury:
    """Judges the LoRAs attached to a network.

    Args:
        at: makes the LoRAs' own strengths of those that are asked about; linear.
    """

    def __init__(
        self, held_out: HeldOut, seen: Sequence[Pictures], bar: Bar, at: At = tuple
    ) -> None:
        self._held_out, self._seen, self._bar, self._at = held_out, seen, bar, at

    def choosing_loss(self, strengths: Sequence[float]) -> float:
        """The mean loss of the choosing halves."""
        self._bar.advance()
        parts = [
            self._held_out.losses(seen.folders, seen.split.chooses, self._at(strengths))
            for seen in self._seen
        ]
        return float(np.concatenate(parts).mean())

    def around(self, strengths: Sequence[float], steps: Sequence[float]) -> Quadratic:
        """The choosing halves' loss around `strengths`, as `refit` asks for it."""
        first, *rest = (
            self._held_out.around(seen.folders, seen.split.chooses, strengths, steps, self._at)
            for seen in self._seen
        )
        self._bar.advance(len(strengths) + 1)
        return sum(rest, first)

    def judged(self, strengths: Sequence[float]) -> Losses:
        """(pictures, timesteps) of the judging halves."""
        parts = [
            self._held_out.losses(seen.folders, seen.split.judges, self._at(strengths))
            for seen in self._seen
        ]
        return np.concatenate(parts)
