"""A resized picture on disk into pixels, or the reason why not."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.artefacts.records import Failure, ResizedRecord
from pipeline.recipe import Size

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for files that are missing, cut short or something else."""


def read_pixels(folder: Path, record: ResizedRecord) -> np.ndarray | Failure:
    """(H, W, 3) uint8 of the picture that `record` names under `folder`."""
    try:
        with Image.open(folder / record.file) as image:
            pixels = np.asarray(image.convert("RGB"))
    except UNREADABLE as error:
        return Failure(md5=record.md5, reason=f"{record.file} cannot be read: {error}")
    size, bucket = Size(pixels.shape[1], pixels.shape[0]), Size(record.width, record.height)
    if size != bucket:
        return Failure(md5=record.md5, reason=f"{record.file} is {size}, its bucket {bucket}")
    return pixels
