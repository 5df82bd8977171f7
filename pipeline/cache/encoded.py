"""What an encoder hands over for one shard."""

from dataclasses import dataclass

from torch import Tensor

from pipeline.artefacts.records import Failure


@dataclass(frozen=True)
class Encoded:
    """One shard's content."""

    tensors: dict[str, Tensor]
    """By their names in the file, on the CPU, one row for each of `rows`."""
    rows: tuple[int, ...]
    """Which of the shard's entries are in it, by their places in the plan."""
    failures: tuple[Failure, ...]
    counts: dict[str, int]
    """Other things worth counting, summed over shards into the receipt."""
