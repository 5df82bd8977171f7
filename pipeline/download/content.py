"""Bytes on disk into a verdict: a still picture that decodes to its last row, or why it is not one.

The type is told by the first bytes alone; names and headers lie. Nothing is decoded before its
size is known to be bearable.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from pipeline.recipe.size import Size

EXTENSIONS = ("jpg", "png", "webp")
"""What is taken from boorus, by its magic bytes."""
FOLDER_EXTENSIONS = (*EXTENSIONS, "bmp", "gif")

MOST_PIXELS = 120_000_000
"""Larger pictures are refused: as RGBA they would take half a gigabyte each to decode."""
ORIENTATION = 0x0112
"""The EXIF tag; from 5 on, width and height change places."""


class Unusable(Exception):
    """Why these bytes are no picture that can be trained on."""


@dataclass(frozen=True)
class Picture:
    """A picture that decodes."""

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


def check(path: Path, extensions: tuple[str, ...]) -> Picture:
    """The picture in `path`, decoded once to see that all of it is there.

    Raises:
        Unusable: empty, of no such type, animated, too large, cut off or damaged.
        OSError: the file cannot be read at all.
    """
    with open(path, "rb") as handle:
        head = handle.read(16)
    found = next((f for f in FORMATS if f.extension in extensions and f.is_one(head)), None)
    if found is None:
        if not head:
            raise Unusable("the file is empty")
        raise Unusable(f"its bytes are not one of {', '.join(extensions)}")
    try:
        # verify() checks what the format has of checksums and spoils the object for decoding.
        with open(path, "rb") as handle:
            size = _measure(found.opener(handle))
        with open(path, "rb") as handle:
            found.opener(handle).verify()
        with open(path, "rb") as handle:
            found.opener(handle).load()
    except (Unusable, MemoryError):
        raise
    except Exception as error:  # A decoder may raise anything over hostile bytes: one item's row.
        raise Unusable(f"it does not decode: {error}") from error
    return Picture(found.extension, size)


def _measure(image: ImageFile) -> Size:
    width, height = image.size
    if width < 1 or height < 1:
        raise Unusable("it has no pixels")
    if width * height > MOST_PIXELS:
        raise Unusable(
            f"{width}x{height} pixels are more than the {MOST_PIXELS:,} that are decoded"
        )
    if getattr(image, "n_frames", 1) > 1:
        raise Unusable("it is animated")
    return Size(height, width) if _lies_on_its_side(image) else Size(width, height)


def _lies_on_its_side(image: ImageFile) -> bool:
    try:
        return image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # noqa: BLE001 - damaged EXIF raises anything; the pixels may be sound.
        return False
