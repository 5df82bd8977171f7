"""The one way in which a picture is opened: safely, as people see it, on its place in a bucket.

EXIF turn, ICC profile to sRGB, transparency over white, palette, 16 bits, greyscale, CMYK: all end
as 8-bit RGB. Truncated and damaged files are failures, never repaired; animated ones and
decompression bombs are refused from the header.
"""

import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from PIL import Image

from pipeline.artefacts.files import unjudged
from pipeline.errors import UrushiError
from pipeline.pictures import pillow
from pipeline.pictures.header import MAX_BYTES, header_of, read_header
from pipeline.pictures.placement import Placement, Plan
from pipeline.pictures.quiet import quiet_decoders
from pipeline.pictures.unreadable import Unreadable
from pipeline.size import Size

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
        from pipeline.pictures import vips
    except (ImportError, OSError):  # OSError: pyvips is there, the library that it wraps is not.
        return None
    return vips


def read_fitted(path: Path, plan: Plan, *, engine: types.ModuleType | None) -> tuple[Fitted, ...]:
    """The picture in `path`, decoded once, scaled and cropped to each of its places by `plan`.

    `engine` is what `vips_engine` gave; None uses Pillow for everything.

    Raises:
        Unreadable: it cannot be used; the message is the reason.
        UrushiError: the disk fails, or no file can be opened.
    """
    with _judged(), _opened(path) as handle:
        # Read once: what was judged by its header is what is decoded.
        content = handle.read()
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


def read_alpha(path: Path, placement: Placement) -> Image.Image | None:
    """How opaque the picture in `path` is at its place, mode L; None where it has no transparency.

    Raises:
        Unreadable: it cannot be used; the message is the reason.
        UrushiError: the disk fails, or no file can be opened.
    """
    with _judged(), _opened(path) as handle:
        content = handle.read()
        alpha = pillow.decode_alpha(content, read_header(content))
        return None if alpha is None else pillow.fit(alpha, placement)


def read_mask(path: Path, picture: Size, placement: Placement) -> Image.Image:
    """How much each pixel counts by the mask in `path`, mode L, where its picture comes to lie.

    The mask may be of another size than its picture, of the same shape to a pixel.

    Args:
        picture: its size, upright.

    Raises:
        Unreadable: it cannot be used; the message is the reason.
        UrushiError: the disk fails, or no file can be opened.
    """
    with _judged(), _opened(path) as handle:
        content = handle.read()
        header = read_header(content)
        if not same_shape(header.size, picture):
            raise Unreadable(f"{header.size}, which is not the shape of its picture, {picture}")
        return pillow.fit(pillow.decode_grey(content, header), placement)


def same_shape(one: Size, other: Size) -> bool:
    """Whether the smaller is the larger scaled, but for a pixel that rounding takes or gives."""
    small, large = sorted((one, other), key=lambda size: size.area)
    width = small.height * large.width / large.height
    height = small.width * large.height / large.width
    return abs(small.width - width) <= 1 or abs(small.height - height) <= 1


def read_places(path: Path, plan: Plan) -> tuple[Size, Sequence[Placement]]:
    """The size, upright, of the picture in `path`, and its places by `plan`; nothing is decoded.

    Raises:
        Unreadable: its header says that it cannot be used; the message is the reason.
        UrushiError: the disk fails, or no file can be opened.
    """
    with _judged(), _opened(path) as handle:
        size = header_of(handle).size
        return size, plan(size)


@contextmanager
def _judged() -> Iterator[None]:
    """Whatever decoders raise over a broken file as Unreadable, and nothing that they warn of."""
    try:
        with quiet_decoders:
            yield
    except (UrushiError, MemoryError, AssertionError):
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise whatever a broken file leads them to
        reason = str(error).strip() or type(error).__name__
        raise Unreadable(f"damaged: {reason}") from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with unjudged(path):
            if path.stat().st_size > MAX_BYTES:
                raise Unreadable(f"a file of more than {MAX_BYTES:,} bytes")
            handle = open(path, "rb")  # noqa: SIM115 - what is raised below is not about opening it
    except FileNotFoundError:
        raise Unreadable("the file is gone") from None
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}") from None
    with handle, unjudged(path):
        yield handle
