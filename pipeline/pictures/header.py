"""A file's first bytes into a header, and the refusals that need no decoding.

Kinds are told by content, never by a file's name. Everything that decodes obeys what is found here.
"""

import io
from dataclasses import dataclass
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.pictures.unreadable import Unreadable
from pipeline.size import Size

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is read, as Pillow calls it."""
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B")
"""Pillow's pixel modes that have one clear meaning as colours."""
MAX_PIXELS = 1 << 27
"""134 million: about 1 GB while it is decoded. More are refused before any memory is taken."""
MAX_BYTES = 1 << 29
"""Half a gigabyte; the largest upload that a booru takes is 100 MiB."""


@dataclass(frozen=True)
class Header:
    """What a picture says of itself before it is decoded."""

    format: str
    """One of FORMATS, or "MPO": a camera's JPEG with a second view behind the first."""
    mode: str
    """One of MODES."""
    size: Size
    """Pixels, after the EXIF turn."""
    orientation: int
    """EXIF's, 1 to 8, still to be applied; 1 is upright."""
    profile: bytes
    """The embedded ICC profile, b"" where there is none."""


def read_header(content: bytes) -> Header:
    """The header of the picture in `content`, the bytes of a whole file. Raises as `header_of`."""
    return header_of(io.BytesIO(content))


def header_of(handle: BinaryIO) -> Header:
    """The header of the picture in an open file, at its first byte.

    Raises:
        Unreadable: it is no picture, of a kind that is not taken, animated, or too large.
    """
    if not handle.read(1):
        raise Unreadable("the file is empty")
    handle.seek(0)
    try:
        image = Image.open(handle, formats=FORMATS)
    except UnidentifiedImageError:
        raise Unreadable(f"no picture of a known kind ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise Unreadable(f"more than {MAX_PIXELS:,} pixels") from None
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise Unreadable(f"{image.width}x{image.height}: more than {MAX_PIXELS:,} pixels")
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise Unreadable("animated, or several pages")
        if image.mode not in MODES:
            raise Unreadable(f"pixels of mode {image.mode}, whose colours are not defined")
        orientation = _orientation(image)
        size = Size(image.width, image.height)
        return Header(
            format=str(image.format),
            mode=image.mode,
            size=size if orientation < 5 else Size(size.height, size.width),
            orientation=orientation,
            profile=image.info.get("icc_profile") or b"",
        )


def _orientation(image: Image.Image) -> int:
    """From the EXIF block alone; Pillow turns TIFF by itself.

    Pillow's own search would also believe XMP, and decode the whole of a PNG to look behind it.
    """
    block = image.info.get("exif")
    if not block or image.format == "TIFF":
        return 1
    exif = Image.Exif()
    try:
        exif.load(block)
        value = exif.get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, OSError, ValueError, KeyError, IndexError):
        return 1  # A damaged block says nothing; the picture itself may be sound.
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
