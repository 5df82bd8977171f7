"""A picture on disk into pixels, as an entry shows it, or the reason why not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance

from pipeline.artefacts.files import unjudged
from pipeline.artefacts.identity import digest_bytes
from pipeline.artefacts.records import Failure
from pipeline.cache.plan import Look
from pipeline.pictures.placement import Placement
from pipeline.pictures.read import read_alpha, read_fitted, read_mask, vips_engine
from pipeline.pictures.unreadable import Unreadable
from pipeline.size import Size

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for files that are missing, cut short or something else."""
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
RECOLOUR = 0.1
"""Brightness, contrast and saturation move by so much of themselves at most. Hue stands: captions
name colours."""


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of entries lie."""

    folder: Path
    kept: bool
    """Whether they are there as resizing stored them, or only their originals."""
    masks: Literal["alpha", "files"] | None = None
    """As [cache].masks; "alpha" of originals alone."""


@dataclass(frozen=True)
class Shown:
    """An entry's pixels."""

    pixels: np.ndarray
    """(H, W, 3) uint8."""
    mask: np.ndarray | None
    """(H, W) uint8, 255 where all of it counts; None where all does everywhere, or nobody asked."""
    engine: str
    """What decoded and scaled an original; "" for a stored picture."""


def read_pixels(pictures: Pictures, look: Look) -> Shown | Failure:
    """What the entry `look` shows.

    Raises:
        UrushiError: the disk fails, or no file can be opened.
    """
    try:
        picture, engine = (_stored if pictures.kept else _fitted)(pictures.folder, look)
        mask = _mask(pictures, look)
    except Unreadable as error:
        return Failure(md5=look.md5, reason=str(error))
    if look.recoloured:
        picture = recoloured(picture, look.md5, look.recoloured)
    if look.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mask = None if mask is None else mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Shown(np.asarray(picture), None if mask is None else np.asarray(mask), engine)


def _mask(pictures: Pictures, look: Look) -> Image.Image | None:
    if pictures.masks == "alpha":
        return read_alpha(pictures.folder / look.file, look.placement)
    if look.mask is None:
        return None
    try:
        return read_mask(Path(look.mask.path), look.original, look.placement)
    except Unreadable as error:
        raise Unreadable(f"its mask {look.mask.path}: {error}") from None


def _stored(folder: Path, look: Look) -> tuple[Image.Image, str]:
    try:
        with unjudged(folder / look.file), Image.open(folder / look.file) as opened:
            picture = opened.convert("RGB")
    except UNREADABLE as error:
        raise Unreadable(f"{look.file} cannot be read: {error}") from None
    size = Size(picture.width, picture.height)
    if size != look.bucket:
        raise Unreadable(f"{look.file} is {size}, its bucket {look.bucket}")
    return picture, ""


def _fitted(folder: Path, look: Look) -> tuple[Image.Image, str]:
    """From its original, by the function that resizing uses."""

    def plan(size: Size) -> Sequence[Placement]:
        if size != look.original:
            raise Unreadable(f"{look.file} is {size}, and was {look.original} when it was placed")
        return (look.placement,)

    engine = vips_engine()
    (one,) = read_fitted(folder / look.file, plan, engine=engine)
    if engine is None or one.engine == "pillow":
        return one.image, "pillow"
    return one.image, f"libvips {engine.version()}"


def recoloured(picture: Image.Image, md5: str, number: int) -> Image.Image:
    """`picture` (RGB) with its factors drawn from (md5, number) alone."""
    drawn = digest_bytes(f"recolour {md5} {number}".encode())
    for place, enhancer in enumerate(ENHANCERS):
        uniform = int(drawn[place * 16 : place * 16 + 16], 16) / 2**64
        picture = enhancer(picture).enhance(1 + RECOLOUR * (2 * uniform - 1))
    return picture
