"""A resized picture on disk into pixels, as an entry shows it, or the reason why not."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from pipeline.artefacts.identity import digest_bytes
from pipeline.artefacts.records import Failure
from pipeline.cache.plan import Look
from pipeline.recipe import Size

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for files that are missing, cut short or something else."""
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
RECOLOUR = 0.1
"""Brightness, contrast and saturation move by so much of themselves at most. Hue stands: captions
name colours."""


def read_pixels(folder: Path, look: Look) -> np.ndarray | Failure:
    """(H, W, 3) uint8 of the entry `look`, whose picture lies under `folder`."""
    try:
        with Image.open(folder / look.file) as opened:
            picture = opened.convert("RGB")
    except UNREADABLE as error:
        return Failure(md5=look.md5, reason=f"{look.file} cannot be read: {error}")
    size = Size(picture.width, picture.height)
    if size != look.bucket:
        return Failure(md5=look.md5, reason=f"{look.file} is {size}, its bucket {look.bucket}")
    if look.recoloured:
        picture = recoloured(picture, look.md5, look.recoloured)
    if look.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture)


def recoloured(picture: Image.Image, md5: str, number: int) -> Image.Image:
    """`picture` (RGB) with its factors drawn from (md5, number) alone."""
    drawn = digest_bytes(f"recolour {md5} {number}".encode())
    for place, enhancer in enumerate(ENHANCERS):
        uniform = int(drawn[place * 16 : place * 16 + 16], 16) / 2**64
        picture = enhancer(picture).enhance(1 + RECOLOUR * (2 * uniform - 1))
    return picture
