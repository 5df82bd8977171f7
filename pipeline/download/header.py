"""What a picture says of itself: its type by the first bytes alone, and its size by the header.

Names lie, and so do headers, but nothing is decoded before its size is known to be bearable: see
content.py, which decodes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from pipeline.artefacts.files import OF_THE_MACHINE
from pipeline.size import Size

EXTENSIONS = ("jpg", "png", "webp")
"""What is taken from boorus, by its magic bytes."""
FOLDER_EXTENSIONS = (*EXTENSIONS, "bmp", "gif")

ORIENTATION = 0x0112
"""The EXIF tag; from 5 on, width and height change places."""


class Unusable(Exception):
    """Why these bytes are no picture that can be trained on."""


@dataclass(frozen=True)
class Picture:
    """A still picture, by what its header says."""

    extension: str
    """By its bytes: jpg, png, webp, bmp or gif."""
    size: Size
    """Pixels, after the EXIF turn."""


@dataclass(frozen=True)
class _Format:
    extension: str
    is_one: Callable[[bytes], bool]
    opener: Callable[[BinaryIO], ImageFile]
    """Pillow's own class for the format. Image.open would guess by itself, and warn by itself."""


FORMATS = (
    _Format("jpg", lambda head: head.startswith(b"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    _Format("png", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    _Format(
        "webp",
        lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP",
        WebPImagePlugin.WebPImageFile,
    ),
    _Format("bmp", lambda head: head.startswith(b"BM"), BmpImagePlugin.BmpImageFile),
    _Format("gif", lambda head: head.startswith(b"GIF8"), GifImagePlugin.GifImageFile),
)


def glance(path: Path, extensions: tuple[str, ...], most_pixels: int) -> Picture:
    """What the first bytes and the header of `path` say; nothing is decoded.

    Raises:
        Unusable: empty, of no such type, animated, or of more pixels than `most_pixels`.
        OSError: the file cannot be read at all.
    """
    with open(path, "rb") as handle:
        return glance_into(handle, extensions, most_pixels)


def glance_into(handle: BinaryIO, extensions: tuple[str, ...], most_pixels: int) -> Picture:
    """`glance` at what is open, or in memory, at its first byte. Raises Unusable."""
    found = _format(handle, extensions)
    try:
        size = _measure(found.opener(handle), most_pixels)
    except Exception as error:
        raise as_unusable(error) from error
    return Picture(found.extension, size)


def opener_of(extension: str) -> Callable[[BinaryIO], ImageFile]:
    """Pillow's class for the format of `extension`."""
    return next(found.opener for found in FORMATS if found.extension == extension)


def _format(handle: BinaryIO, extensions: tuple[str, ...]) -> _Format:
    head = handle.read(16)
    handle.seek(0)
    found = next((f for f in FORMATS if f.extension in extensions and f.is_one(head)), None)
    if found is None:
        if not head:
            raise Unusable("the file is empty")
        raise Unusable(f"its bytes are not one of {', '.join(extensions)}")
    return found


def as_unusable(error: Exception) -> Exception:
    """What to raise over `error`: hostile bytes make a decoder raise anything, which is one item's
    row; what is the machine's stays what it is."""
    if isinstance(error, Unusable | MemoryError):
        return error
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        return error
    return Unusable(f"it does not decode: {error}")


def _measure(image: ImageFile, most_pixels: int) -> Size:
    width, height = image.size
    if width < 1 or height < 1:
        raise Unusable("it has no pixels")
    if width * height > most_pixels:
        raise Unusable(f"{width}x{height} pixels are more than the {most_pixels:,} of most_pixels")
    if getattr(image, "n_frames", 1) > 1:
        raise Unusable("it is animated")
    return Size(height, width) if _lies_on_its_side(image) else Size(width, height)


def _lies_on_its_side(image: ImageFile) -> bool:
    try:
        # Image's own: PNG's would decode all of it to find a chunk at the end.
        return Image.Image.getexif(image).get(ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # noqa: BLE001 - damaged EXIF raises anything; the pixels may be sound.
        return False
