"""The one way in which a picture is opened: safely, as people see it, on its place in a bucket.

EXIF turn, ICC profile to sRGB, transparency over white, palette, 16 bits, greyscale, CMYK: all end
as 8-bit RGB. Truncated and damaged files are failures, never repaired; animated ones and
decompression bombs are refused from the header.
"""

import types
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from pipeline.recipe import Size
from pipeline.resize import pillow
from pipeline.resize.header import MAX_BYTES, Unreadable, read_header
from pipeline.resize.ladder import Placement, nearest_bucket, place

EngineName = Literal["vips", "pillow"]


@dataclass(frozen=True)
class Fitted:
    """A picture in its bucket."""

    image: Image.Image
    """Mode RGB, the bucket's size."""
    original: Size
    """Pixels, after the EXIF turn."""
    placement: Placement
    engine: EngineName
    """What decoded and scaled it."""


def vips_engine() -> types.ModuleType | None:
    """The vips engine, or None where pyvips or its library cannot be loaded."""
    try:
        from pipeline.resize import vips
    except (ImportError, OSError):  # OSError: pyvips is there, the library that it wraps is not.
        return None
    return vips


def read_fitted(path: Path, ladder: Sequence[Size], *, engine: types.ModuleType | None) -> Fitted:
    """The picture in `path`, scaled to cover its bucket in `ladder`, and its middle cropped out.

    `engine` is what `vips_engine` gave; None uses Pillow for everything.

    Raises:
        Unreadable: it cannot be used; the message is the reason.
    """
    content = _content(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures and of odd metadata; both are judged here instead.
            warnings.simplefilter("ignore")
            header = read_header(content)
            placement = place(header.size, nearest_bucket(header.size, ladder))
            if engine is not None and engine.takes(header, placement):
                return Fitted(
                    engine.fit(content, header, placement), header.size, placement, "vips"
                )
            picture = pillow.decode(content, header)
            return Fitted(pillow.fit(picture, placement), header.size, placement, "pillow")
    except (Unreadable, MemoryError, AssertionError):
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise whatever a broken file leads them to
        reason = str(error).strip() or type(error).__name__
        raise Unreadable(f"damaged: {reason}") from None


def _content(path: Path) -> bytes:
    """The file's bytes, read once: what was judged by its header is what is decoded."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Unreadable(f"a file of more than {MAX_BYTES:,} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise Unreadable("the file is gone") from None
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}") from None
