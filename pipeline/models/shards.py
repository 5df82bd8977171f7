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
from pipeline.artefacts.receipts import lost, read_receipt
from pipeline.artefacts.records import LatentRecord, TextRecord, read_records
from pipeline.errors import RequestError, UrushiError
from pipeline.models.places import EMPTY_CAPTION
from pipeline.size import Size

AnyShardRecord = TypeVar("AnyShardRecord", LatentRecord, TextRecord)


MASK = "mask"
"""The tensor of a latent shard that says what of its pictures counts."""


class Posterior(NamedTuple):
    """What the VAE says of a picture, unscaled: mean and log-variance, each (4, h, w) float16."""

    mean: Tensor
    logvar: Tensor


class _Store(Generic[AnyShardRecord]):
    """Rows of shards by md5. Tensors are views into mapped files: clone before writing to one."""

    def __init__(self, folder: Path, rows: Sequence[AnyShardRecord]) -> None:
        self.folder = folder
        self._rows: tuple[AnyShardRecord, ...] = tuple(rows)
        self._shards: dict[str, dict[str, Tensor]] = {}

    def __contains__(self, md5: str) -> bool:
        return md5 in self._by_md5

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def records(self) -> tuple[AnyShardRecord, ...]:
        """What is trained on, in order of md5: variants are other looks at these."""
        return tuple(row for row in self._rows if row.variant == 0)

    @cached_property
    def _by_md5(self) -> dict[str, list[AnyShardRecord]]:
        found: dict[str, list[AnyShardRecord]] = {}
        for row in self._rows:
            found.setdefault(row.md5, []).append(row)
        return found

    def _of(self, md5: str) -> list[AnyShardRecord]:
        """Raises UrushiError where nothing of `md5` is cached here."""
        found = self._by_md5.get(md5)
        if found is None:
            what = f"picture {md5}" if md5 else "the empty caption"
            raise UrushiError(f"{self.folder} has nothing for {what}. Run `urushi cache` again.")
        return found

    def _lacks(self, md5: str, what: str) -> UrushiError:
        return UrushiError(
            f"{self.folder} has no {what} of picture {md5}. Run `urushi cache` again."
        )

    def _tensors(self, shard: str) -> dict[str, Tensor]:
        tensors = self._shards.get(shard)
        if tensors is None:
            tensors = self._shards[shard] = self._open(shard)
        return tensors

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
    """The latents of one dataset: of a picture one record for each bucket that it lies in, the
    largest first, and as many variants of each."""

    def variants(self, md5: str) -> int:
        """How many looks at the picture are cached, itself included: at least 1."""
        return 1 + max(row.variant for row in self._of(md5))

    def record(self, md5: str, variant: int = 0, bucket: Size | None = None) -> LatentRecord:
        """The row of `md5`; of its largest bucket, where `bucket` does not name another.

        Raises:
            UrushiError: there is none.
        """
        for row in self._of(md5):
            if row.variant == variant and bucket in (None, (row.width, row.height)):
                return row
        raise self._lacks(md5, f"variant {variant} in bucket {bucket}")

    def latent(self, md5: str, variant: int = 0, bucket: Size | None = None) -> Posterior:
        """(mean, logvar) of `record(md5, variant, bucket)`, each (4, h, w) float16, unscaled."""
        row = self.record(md5, variant, bucket)
        tensors = self._tensors(row.shard)
        return Posterior(tensors["mean"][row.row], tensors["logvar"][row.row])

    def mask(self, md5: str, variant: int = 0, bucket: Size | None = None) -> Tensor:
        """(h, w) float32, 0 to 1, of `record(md5, variant, bucket)`: how much each pixel counts.

        Raises:
            RequestError: these latents were cached without masks.
        """
        row = self.record(md5, variant, bucket)
        masks = self._tensors(row.shard).get(MASK)
        if masks is None:
            raise RequestError(
                f"{self.folder} holds no masks, which [train].masked_loss needs. Set [cache].masks "
                'to "alpha" or "files" and run `urushi cache`.'
            )
        return masks[row.row].float() / 255


class TextStore(_Store[TextRecord]):
    """The text encoders' output for one dataset's captions and their variants."""

    def variants(self, md5: str) -> int:
        """How many texts of the picture are cached: at least 1. Which one is shown is up to
        training, as a function of (seed, epoch, image)."""
        return len(self._of(md5))

    def record(self, md5: str, variant: int = 0) -> TextRecord:
        """Raises UrushiError where there is none."""
        for row in self._of(md5):
            if row.variant == variant:
                return row
        raise self._lacks(md5, f"text variant {variant}")

    def hidden(self, md5: str, variant: int = 0) -> Tensor:
        """(77 x chunks, D) float16 of one of the picture's texts; SDXL's D is both encoders'."""
        row = self.record(md5, variant)
        return self._tensors(row.shard)["hidden"][row.row]

    def pooled(self, md5: str, variant: int = 0) -> Tensor | None:
        """(P,) float16, SDXL's pooled and projected text; None for SD 1.5, which has none."""
        row = self.record(md5, variant)
        pooled = self._tensors(row.shard).get("pooled")
        return None if pooled is None else pooled[row.row]

    @property
    def empty(self) -> Tensor:
        """`hidden` of the empty caption, for caption dropout and guidance."""
        return self.hidden(EMPTY_CAPTION)

    @property
    def empty_pooled(self) -> Tensor | None:
        """`pooled` of the empty caption."""
        return self.pooled(EMPTY_CAPTION)


def open_latents(folder: Path) -> LatentStore:
    """The finished latent shards in `folder`. Raises RequestError where they are not finished."""
    return LatentStore(folder, _finished(folder, LatentRecord))


def open_texts(folder: Path) -> TextStore:
    """The finished text shards in `folder`. Raises RequestError where they are not finished."""
    return TextStore(folder, _finished(folder, TextRecord))


def _finished(folder: Path, kind: type[AnyShardRecord]) -> list[AnyShardRecord]:
    receipt = read_receipt(folder)
    if receipt is None:
        raise RequestError(f"The shards in {folder} are not finished. Run `urushi cache` first.")
    if (name := lost(folder, receipt)) is not None:
        raise RequestError(
            f"{folder / name} is missing, or has another size than when it was made. "
            "Run `urushi cache` again."
        )
    return read_records(folder / INDEX_FILE, kind)
