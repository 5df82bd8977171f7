"""The one way in which a picture is opened: safely, as people see it, on its place in a bucket.

EXIF turn, ICC profile to sRGB, transparency over white, palette, 16 bits, greyscale, CMYK: all end
as 8-bit RGB. Truncated and damaged files are failures, never repaired; animated ones and
decompression bombs are refused from the header.
"""

import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from pipeline.recipe import Size
from pipeline.resize import pillow
from pipeline.resize.header import MAX_BYTES, Unreadable, read_header
from pipeline.resize.ladder import Ladder, Placement

EngineName = Literal["vips", "pillow"]
Plan = Callable[[Size], Sequence[Placement]]
"""A picture's size, upright, to all its places."""


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


def plan_for(ladders: Sequence[Ladder], md5: str) -> Plan:
    """The places of the picture `md5` on `ladders`, each once.

    Two ladders may give one place: a strip's, or that of a picture too small for either.
    """

    def plan(picture: Size) -> Sequence[Placement]:
        found = [ladder.placement(picture, md5) for ladder in ladders]
        placements = tuple(dict.fromkeys(placement for placement in found if placement))
        if not placements:
            least = ladders[0].min_side
            raise Unreadable(f"{picture}: [resize].upscale is off and a side is under {least}")
        return placements

    return plan


def read_fitted(path: Path, plan: Plan, *, engine: types.ModuleType | None) -> tuple[Fitted, ...]:
    """The picture in `path`, decoded once, scaled and cropped to each of its places by `plan`.

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
            placements = plan(header.size)
            images: dict[Placement, tuple[Image.Image, EngineName]] = {}
            swift = [p for p in placements if engine is not None and engine.takes(header, p)]
            if swift and engine is not None:
                made = engine.fit(content, header, swift)
                images |= {p: (image, "vips") for p, image in zip(swift, made, strict=True)}
            if len(swift) < len(placements):
                picture = pillow.decode(content, header)
                for placement in placements:
                    if placement not in images:
                        images[placement] = (pillow.fit(picture, placement), "pillow")
            return tuple(Fitted(images[p][0], header.size, p, images[p][1]) for p in placements)
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
