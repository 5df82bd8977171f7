"""Dealing a round's batches to steps and devices, each made ready while the one before is computed.

A step is `accumulation` batches, whose samples count alike in its loss: of a step's last, shorter
batch no sample weighs more. The round's last step may have fewer batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.train.ahead import Ahead, moved, pinned
from pipeline.train.feed import Feed, Inputs


@dataclass(frozen=True)
class Share:
    """One batch of a step, for this device."""

    batch: int
    """Counted from 0 over the whole round."""
    inputs: Inputs
    """On the device."""
    samples: int
    """That a sum of its losses is divided by: of a step those of all devices."""
    counts: bool
    """False where a step has no batch for this device: all must meet at the gradients, so it shows
    a later one for nothing."""
    last: bool
    """Of this device's in the step."""


class Deal:
    """The batches of one device (`place` of `devices`, from 0), step after step."""

    def __init__(
        self,
        feed: Feed,
        batches: int,
        accumulation: int,
        device: torch.device,
        devices: int = 1,
        place: int = 0,
    ) -> None:
        self._feed, self._device = feed, device
        self._batches, self._accumulation = batches, accumulation
        self._devices, self._place = devices, place
        self.steps = -(-batches // accumulation)
        """Of the round."""
        self._ahead: Ahead[tuple[Inputs, int]] | None = None

    def at(self, step: int) -> Iterator[Share]:
        """This device's batches of `step`: those of any first, then of each next one."""
        if self._ahead is None:
            steps = range(step, self.steps)
            self._ahead = Ahead(self._made, (b for s in steps for b in self._mine(s)))
        mine, everyones = self._mine(step), self._everyones(step)
        for batch in mine:
            inputs, samples = self._ahead.next()
            on_device = moved(inputs, self._device)
            yield Share(batch, on_device, samples, batch in everyones, batch == mine[-1])

    def first(self, count: int) -> Iterator[Share]:
        """Of the round's first `count` batches this device's, each counting alike; a shorter
        round's come again."""
        most = -(-count // self._devices) * self._devices
        for number in range(self._place, most, self._devices):
            batch = number % self._batches
            samples, last = count * self._feed.size_at(batch), number + self._devices >= most
            inputs = moved(self._feed.at(batch), self._device)
            yield Share(batch, inputs, samples, number < count, last)

    def _everyones(self, step: int) -> range:
        first = step * self._accumulation
        return range(first, min(first + self._accumulation, self._batches))

    def _mine(self, step: int) -> range:
        first = step * self._accumulation + self._place
        return range(first, max(first + 1, self._everyones(step).stop), self._devices)

    def _made(self, batch: int) -> tuple[Inputs, int]:
        """A batch and its whole step's samples: in the one thread that asks the feed."""
        everyones = self._everyones(batch // self._accumulation)
        samples = sum(self._feed.size_at(each) for each in everyones)
        inputs = self._feed.at(batch)
        return (pinned(inputs) if self._device.type == "cuda" else inputs), samples
