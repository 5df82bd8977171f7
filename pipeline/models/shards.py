"""Cached shards into tensors, by picture: memory-mapped, so that only what is looked at is read.

The cache writes these folders; training reads them.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.artefacts.chain import INDEX_FILE
from pipeline.artefacts.receipts import done, read_receipt
from pipeline.artefacts.records import LatentRecord, TextRecord, read_records
from pipeline.errors import RequestError, UrushiError
from pipeline.models.places import EMPTY_CAPTION

AnyShardRecord = TypeVar("AnyShardRecord", LatentRecord, TextRecord)


class Posterior(NamedTuple):
    """What the VAE says of a picture, unscaled: mean and log-variance, each (4, h, w) float16."""

    mean: Tensor
    logvar: Tensor


class _Store(Generic[AnyShardRecord]):
    """Rows of shards by md5. Tensors are views into mapped files: clone before writing to one."""

    def __init__(self, folder: Path, records: Sequence[AnyShardRecord]) -> None:
        self.folder = folder
        self.records: tuple[AnyShardRecord, ...] = tuple(records)
        """In order of md5."""
        self._shards: dict[str, dict[str, Tensor]] = {}

    def __contains__(self, md5: str) -> bool:
        return md5 in self._by_md5

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def _by_md5(self) -> dict[str, AnyShardRecord]:
        return {record.md5: record for record in self.records}

    def record(self, md5: str) -> AnyShardRecord:
        """Raises UrushiError where the picture is not cached here."""
        found = self._by_md5.get(md5)
        if found is None:
            what = f"picture {md5}" if md5 else "the empty caption"
            raise UrushiError(f"{self.folder} has nothing for {what}. Run `urushi cache` again.")
        return found

    def _row(self, md5: str, name: str) -> Tensor:
        record = self.record(md5)
        tensors = self._shards.get(record.shard)
        if tensors is None:
            tensors = self._shards[record.shard] = self._open(record.shard)
        return tensors[name][record.row]

    def _open(self, shard: str) -> dict[str, Tensor]:
        path = self.folder / shard
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                return {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise UrushiError(
                f"{path} cannot be read ({error}). Delete it and run `urushi cache` again."
            ) from error


class LatentStore(_Store[LatentRecord]):
    """The latents of one dataset."""

    def latent(self, md5: str) -> Posterior:
        """(mean, logvar) of one picture, each (4, h, w) float16, unscaled."""
        return Posterior(self._row(md5, "mean"), self._row(md5, "logvar"))


class TextStore(_Store[TextRecord]):
    """The hidden states of one dataset's captions."""

    def hidden(self, md5: str) -> Tensor:
        """(77, D) float16 of one picture's caption."""
        return self._row(md5, "hidden")

    @property
    def empty(self) -> Tensor:
        """(77, D) float16 of the empty caption, for caption dropout and guidance."""
        return self.hidden(EMPTY_CAPTION)


def open_latents(folder: Path) -> LatentStore:
    """The finished latent shards in `folder`. Raises RequestError where they are not finished."""
    return LatentStore(folder, _finished(folder, LatentRecord))


def open_texts(folder: Path) -> TextStore:
    """The finished text shards in `folder`. Raises RequestError where they are not finished."""
    return TextStore(folder, _finished(folder, TextRecord))


def _finished(folder: Path, kind: type[AnyShardRecord]) -> list[AnyShardRecord]:
    receipt = read_receipt(folder)
    if receipt is None or done(folder, receipt.fingerprint) is None:
        raise RequestError(f"The shards in {folder} are not finished. Run `urushi cache` first.")
    return read_records(folder / INDEX_FILE, kind)
