"""Which pictures make up which step: one source and bucket a batch, shuffled by (seed, epoch)."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.artefacts.records import LatentRecord
from pipeline.size import Size
from pipeline.train.counted import seed_of


@dataclass(frozen=True)
class Pool:
    """What one source has to show."""

    records: Sequence[LatentRecord]
    repeats: int = 1
    """How often an epoch shows each."""


@dataclass(frozen=True)
class Batch:
    """One step's pictures, all of one source and bucket."""

    epoch: int
    """From 0."""
    source: int
    """Which of the pools, from 0."""
    bucket: Size
    pictures: tuple[tuple[str, int], ...]
    """(md5, which of its repeats, from 0)."""

    @property
    def md5s(self) -> tuple[str, ...]:
        return tuple(md5 for md5, _ in self.pictures)


class Order:
    """The batches of a round. Pure in (pools, batch size, seed, round)."""

    def __init__(
        self, pools: Sequence[Pool], batch_size: int, seed: int, round_number: int
    ) -> None:
        self._batch_size = batch_size
        self._key = (seed, round_number)
        self._buckets: dict[tuple[int, Size], list[tuple[str, int]]] = {}
        for source, pool in enumerate(pools):
            for record in sorted(pool.records, key=lambda r: r.md5):
                place = source, Size(record.width, record.height)
                shown = ((record.md5, copy) for copy in range(pool.repeats))
                self._buckets.setdefault(place, []).extend(shown)
        self.steps_per_epoch = sum(-(-len(b) // batch_size) for b in self._buckets.values())
        self._epoch: tuple[int, list[Batch]] = (-1, [])

    def at(self, step: int) -> Batch:
        """The batch of `step`, counted from 0 over the whole round."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffled(epoch))
        return self._epoch[1][index]

    def _shuffled(self, epoch: int) -> list[Batch]:
        batches = []
        for (source, bucket), shown in sorted(self._buckets.items()):
            ranks = {
                one: seed_of(*self._key, "order", epoch, *keyed(source), one[0], *keyed(one[1]))
                for one in shown
            }
            mixed = sorted(shown, key=ranks.__getitem__)
            for start in range(0, len(mixed), self._batch_size):
                part = tuple(mixed[start : start + self._batch_size])
                place = seed_of(*self._key, "batch", epoch, *bucket, start, *keyed(source))
                batches.append((place, Batch(epoch, source, bucket, part)))
        return [batch for _, batch in sorted(batches, key=lambda item: item[0])]


def keyed(number: int) -> tuple[int, ...]:
    """A source's or a repeat's part of a key: the first has none, so that what a build draws for
    its own pictures does not change with what stands beside them."""
    return (number,) if number else ()
