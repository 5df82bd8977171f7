"""Pictures and captions into shards: which entries go into which file, in one order for ever."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.masks import Mask
from pipeline.artefacts.records import CaptionRecord, ResizedRecord
from pipeline.models.places import EMPTY_CAPTION
from pipeline.pictures.placement import Placement
from pipeline.recipe.cache import Cache
from pipeline.size import Size

FLOAT16 = 2
"""Bytes of a cached number."""
POSTERIOR = 2
"""A latent is kept as mean and log-variance."""
CHUNK = 77
"""Tokens that a text encoder takes at once, start and end included."""
MEGABYTE = 1_000_000
OVERLONG = "cut_captions"
"""The name under which receipts count captions longer than the text encoder reads."""


UNMASKED = {"alpha": "without_transparency", "files": "without_a_mask"}
"""The names under which receipts count entries whose masks are of ones, by [cache].masks."""


class Look(NamedTuple):
    """One entry of a latent shard: a picture in a bucket, as it is, mirrored or recoloured."""

    md5: str
    variant: int
    """0 as it is; then mirrored, if that is asked for; then recoloured ones."""
    mirrored: bool
    recoloured: int
    """Which recolouring, from 1; 0 for none."""
    file: str
    """As ResizedRecord.file."""
    original: Size
    placement: Placement
    """Of the picture as it is."""
    mask: Mask | None = None
    """The file that says what of the picture counts; None: there is none, or none is wanted."""

    @property
    def bucket(self) -> Size:
        return self.placement.bucket

    @property
    def mark(self) -> list[str | int]:
        """What a shard's fingerprint holds of it."""
        # Nothing of a mask where there is none: as it was before there were masks.
        return [self.md5, self.variant, *(() if self.mask is None else (self.mask.digest,))]

    @property
    def left(self) -> int:
        """Pixels cut off at the left, as the entry shows the picture."""
        place = self.placement
        if not self.mirrored:
            return place.left
        return place.scaled.width - place.bucket.width - place.left

    @property
    def top(self) -> int:
        """Pixels cut off above."""
        return self.placement.top


class Text(NamedTuple):
    """One entry of a text shard: a caption, or another text of the picture."""

    md5: str
    variant: int
    text: str

    @property
    def mark(self) -> list[str | int]:
        """As Look.mark; its text is of the captions' fingerprint."""
        return [self.md5, self.variant]


Item = TypeVar("Item", Look, Text)


@dataclass(frozen=True)
class Shard(Generic[Item]):
    """Entries that go into one file. A shard of looks holds one bucket."""

    name: str
    items: tuple[Item, ...]

    @property
    def receipt(self) -> str:
        """The name of the file that proves this shard done."""
        return f"{Path(self.name).stem}.receipt.json"

    def fingerprint(self, of: str) -> str:
        """Of its entries in order, and their masks, within the cache whose fingerprint is `of`."""
        rows = [item.mark for item in self.items]
        return fingerprint(cache=of, shard=self.name, rows=rows)


def latent_row_bytes(size: Size, vae: dict[str, Any], *, masked: bool = False) -> int:
    """What one picture of `size` takes in a shard, by the VAE's configuration.

    The VAE halves both sides between each two of its levels (diffusers' AutoencoderKL).
    """
    factor: int = 2 ** (len(vae["block_out_channels"]) - 1)
    area = (size.width // factor) * (size.height // factor)
    return POSTERIOR * FLOAT16 * int(vae["latent_channels"]) * area + masked * area


def text_row_bytes(encoders: Sequence[dict[str, Any]], chunks: int) -> int:
    """What one caption takes in a shard, by its text encoders' configurations."""
    hidden = sum(int(encoder["hidden_size"]) for encoder in encoders)
    pooled = int(encoders[-1]["projection_dim"]) if len(encoders) > 1 else 0
    return FLOAT16 * (CHUNK * chunks * hidden + pooled)


@lru_cache(maxsize=1 << 16)
def _size(width: int, height: int) -> Size:
    """Each once: of a million entries most share their sizes and places."""
    return Size(width, height)


@lru_cache(maxsize=1 << 16)
def _placement(bucket: Size, scaled: Size, left: int, top: int) -> Placement:
    return Placement(bucket, scaled, left, top)


def looks(record: ResizedRecord, cache: Cache, mask: Mask | None = None) -> Iterable[Look]:
    """Every entry of a picture in one bucket."""
    placement = _placement(
        _size(record.width, record.height),
        _size(record.scaled_width, record.scaled_height),
        record.crop_left,
        record.crop_top,
    )
    original = _size(record.original_width, record.original_height)
    plain = Look(record.md5, 0, False, 0, record.file, original, placement, mask)
    found = [plain]
    if cache.mirror:
        found.append(plain._replace(variant=1, mirrored=True))
    for number in range(1, cache.recolour + 1):
        # Of a picture that is mirrored too, every second recolouring is.
        model = found[number % 2] if cache.mirror else plain
        found.append(model._replace(variant=len(found), recoloured=number))
    return found


def latent_shards(
    pictures: Iterable[ResizedRecord],
    vae: dict[str, Any],
    cache: Cache,
    masks: Mapping[str, Mask] | None = None,
) -> tuple[Shard[Look], ...]:
    """One bucket after the other, entries in order of md5, files closed at the size asked for.

    Args:
        masks: files by md5, of pictures that have one.
    """
    known = masks or {}
    entries = [look for one in pictures for look in looks(one, cache, known.get(one.md5))]
    entries.sort(key=lambda look: (look.bucket, look.md5, look.variant))
    runs = [
        run
        for size, group in groupby(entries, key=lambda look: look.bucket)
        for run in _runs(
            tuple(group),
            latent_row_bytes(size, vae, masked=cache.masks is not None),
            cache.shard_megabytes,
        )
    ]
    return tuple(Shard(f"latents-{i:05d}.safetensors", run) for i, run in enumerate(runs))


def text_shards(
    captions: Iterable[CaptionRecord], row_bytes: int, megabytes: float
) -> tuple[Shard[Text], ...]:
    """The empty caption, then all texts in order of md5, files closed at `megabytes`."""
    entries = [Text(EMPTY_CAPTION, 0, "")]
    for caption in captions:
        texts = (caption.caption, *caption.texts)
        entries += [Text(caption.md5, number, text) for number, text in enumerate(texts)]
    entries.sort(key=lambda text: (text.md5, text.variant))
    runs = _runs(entries, row_bytes, megabytes)
    return tuple(Shard(f"text-{i:05d}.safetensors", run) for i, run in enumerate(runs))


def _runs(items: Sequence[Item], row_bytes: int, megabytes: float) -> Iterable[tuple[Item, ...]]:
    rows = max(1, int(megabytes * MEGABYTE // max(1, row_bytes)))
    return [tuple(items[i : i + rows]) for i in range(0, len(items), rows)]
