"""Pictures and captions into shards: which rows go into which file, in one order for ever."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.records import CaptionRecord, ResizedRecord
from pipeline.models.places import EMPTY_CAPTION
from pipeline.recipe import Size

FLOAT16 = 2
"""Bytes of a cached number."""
POSTERIOR = 2
"""A latent is kept as mean and log-variance."""
MEGABYTE = 1_000_000
OVERLONG = "cut_captions"
"""The name under which receipts count captions longer than the text encoder reads."""

Item = TypeVar("Item", ResizedRecord, CaptionRecord)


@dataclass(frozen=True)
class Shard(Generic[Item]):
    """Items that go into one file. A shard of pictures holds one bucket."""

    name: str
    items: tuple[Item, ...]

    @property
    def receipt(self) -> str:
        """The name of the file that proves this shard done."""
        return f"{Path(self.name).stem}.receipt.json"

    def fingerprint(self, of: str) -> str:
        """Of its rows in order, within the cache whose fingerprint is `of`."""
        return fingerprint(cache=of, shard=self.name, rows=[item.md5 for item in self.items])


def latent_row_bytes(size: Size, vae: dict[str, Any]) -> int:
    """What one picture of `size` takes in a shard, by the VAE's configuration.

    The VAE halves both sides between each two of its levels (diffusers' AutoencoderKL).
    """
    factor: int = 2 ** (len(vae["block_out_channels"]) - 1)
    numbers = int(vae["latent_channels"]) * (size.width // factor) * (size.height // factor)
    return POSTERIOR * FLOAT16 * numbers


def text_row_bytes(encoder: dict[str, Any]) -> int:
    """What one caption takes in a shard, by the text encoder's configuration."""
    return FLOAT16 * int(encoder["max_position_embeddings"]) * int(encoder["hidden_size"])


def latent_shards(
    pictures: Iterable[ResizedRecord], vae: dict[str, Any], megabytes: float
) -> tuple[Shard[ResizedRecord], ...]:
    """One bucket after the other, pictures in order of md5, files closed at `megabytes`."""

    def bucket(picture: ResizedRecord) -> Size:
        return Size(picture.width, picture.height)

    ordered = sorted(pictures, key=lambda picture: (bucket(picture), picture.md5))
    runs = [
        run
        for size, group in groupby(ordered, key=bucket)
        for run in _runs(tuple(group), latent_row_bytes(size, vae), megabytes)
    ]
    return tuple(Shard(f"latents-{i:05d}.safetensors", run) for i, run in enumerate(runs))


def text_shards(
    captions: Iterable[CaptionRecord], encoder: dict[str, Any], megabytes: float
) -> tuple[Shard[CaptionRecord], ...]:
    """The empty caption, then captions in order of md5, files closed at `megabytes`."""
    empty = CaptionRecord(md5=EMPTY_CAPTION, caption="", score=None)
    ordered = (empty, *sorted(captions, key=lambda caption: caption.md5))
    runs = _runs(ordered, text_row_bytes(encoder), megabytes)
    return tuple(Shard(f"text-{i:05d}.safetensors", run) for i, run in enumerate(runs))


def _runs(items: Sequence[Item], row_bytes: int, megabytes: float) -> Iterable[tuple[Item, ...]]:
    rows = max(1, int(megabytes * MEGABYTE // max(1, row_bytes)))
    return [tuple(items[i : i + rows]) for i in range(0, len(items), rows)]
