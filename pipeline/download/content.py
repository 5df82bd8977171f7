"""Bytes on disk into a verdict: a still picture that decodes to its last row, or why it is not one.

`header.glance` reads what a picture says of itself and costs nothing; this decodes.
"""

from pathlib import Path

from PIL import Image, ImageOps

from pipeline.download.header import Picture, as_unusable, glance, opener_of
from pipeline.download.likeness import Looks, looks


def examine(path: Path, extensions: tuple[str, ...], most_pixels: int) -> tuple[Picture, Looks]:
    """The picture in `path`, decoded once to see that all of it is there, and how it looks.

    Raises:
        Unusable: as of `glance`, and what is cut off or damaged.
        OSError: the file cannot be read at all.
    """
    picture = glance(path, extensions, most_pixels)
    opener = opener_of(picture.extension)
    try:
        # verify() checks what the format has of checksums and spoils the object for decoding.
        with open(path, "rb") as handle:
            opener(handle).verify()
        with open(path, "rb") as handle:
            image = opener(handle)
            image.load()
        return picture, looks(image)
    except Exception as error:
        raise as_unusable(error) from error


def thumbnail(path: Path, extensions: tuple[str, ...], most_pixels: int, side: int) -> Image.Image:
    """The picture in `path` as RGB within `side` by `side` pixels, turned as it is looked at.

    Raises:
        Unusable, OSError: as of `examine`.
    """
    opener = opener_of(glance(path, extensions, most_pixels).extension)
    try:
        with open(path, "rb") as handle:
            image = opener(handle)
            image.draft("RGB", (side, side))
            image.load()
        turned = ImageOps.exif_transpose(image).convert("RGBA")
        turned.thumbnail((side, side))
        paper = Image.new("RGBA", turned.size, "white")
        return Image.alpha_composite(paper, turned).convert("RGB")
    except Exception as error:
        raise as_unusable(error) from error
