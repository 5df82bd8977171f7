"""Which pictures make up which step: one bucket a batch, shuffled by epoch, from the seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.artefacts.records import LatentRecord
from pipeline.recipe import Size
from pipeline.train.counted import seed_of


@dataclass(frozen=True)
class Batch:
    """One step's pictures, all of one bucket."""

    epoch: int
    """From 0."""
    bucket: Size
    md5s: tuple[str, ...]


class Order:
    """The batches of a round. Pure in (records, batch size, seed, round)."""

    def __init__(
        self, records: Sequence[LatentRecord], batch_size: int, seed: int, round_number: int
    ) -> None:
        self._batch_size = batch_size
        self._key = (seed, round_number)
        self._buckets: dict[Size, list[str]] = {}
        for record in sorted(records, key=lambda r: r.md5):
            self._buckets.setdefault(Size(record.width, record.height), []).append(record.md5)
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
        for bucket, md5s in sorted(self._buckets.items()):
            mixed = sorted(md5s, key=lambda md5: seed_of(*self._key, "order", epoch, md5))
            for start in range(0, len(mixed), self._batch_size):
                part = tuple(mixed[start : start + self._batch_size])
                place = seed_of(*self._key, "batch", epoch, *bucket, start)
                batches.append((place, Batch(epoch, bucket, part)))
        return [batch for _, batch in sorted(batches, key=lambda item: item[0])]
