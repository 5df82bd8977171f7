"""The vips engine: common kinds, decoded and scaled in one streaming pass, at half of Pillow's CPU.

It takes a picture where it is as good as Pillow, and leaves the others to it. Measured against a
Lanczos in floats, libvips 8.18:

- shrinking 8-bit pixels up to 3.5 times: 53 to 57 dB (Pillow 57);
- beyond that its fixed-point weights no longer add up to one, and white paper turns 253;
- enlarging is bicubic: 31 dB.
"""

import logging
from collections.abc import Sequence

import pyvips
from PIL import Image

from pipeline.pictures.colour import needs_conversion
from pipeline.pictures.header import Header
from pipeline.pictures.placement import Placement
from pipeline.pictures.unreadable import Unreadable

_MODES = ("L", "LA", "P", "RGB", "RGBA")
_MOST_SHRINK = 3.5
_TURNS: dict[int, tuple[str, ...]] = {
    1: (),
    2: ("fliphor",),
    3: ("rot180",),
    4: ("flipver",),
    5: ("rot90", "fliphor"),
    6: ("rot90",),
    7: ("rot270", "fliphor"),
    8: ("rot270",),
}
"""By EXIF orientation. The rotations of vips run clockwise."""


def version() -> str:
    """Of libvips, which does the work."""
    return ".".join(str(pyvips.version(part)) for part in range(3))


def prepare(threads: int | None = None) -> None:
    """Sets vips up for this process: no cache of operations, no chatter; `threads` if given."""
    pyvips.cache_set_max(0)
    logging.getLogger("pyvips").setLevel(logging.ERROR)
    if threads is not None:
        pyvips.concurrency_set(threads)


def takes(header: Header, placement: Placement) -> bool:
    """Whether this engine is as good as Pillow for such a picture."""
    return (
        header.format in ("JPEG", "MPO", "PNG", "WEBP")
        and header.mode in _MODES
        and not needs_conversion(header.profile, header.mode)
        and all(
            scaled <= length <= _MOST_SHRINK * scaled
            for length, scaled in zip(header.size, placement.scaled, strict=True)
        )
    )


def fit(content: bytes, header: Header, placements: Sequence[Placement]) -> list[Image.Image]:
    """The picture in `content`, upright on white, scaled and cropped as each of `placements` says.

    Mode RGB. Decoded once: streamed to one place, kept in memory for several.

    Raises:
        Unreadable: it is truncated or damaged.
    """
    try:
        image = _upright(_load(content, header), header.orientation)
        if (image.width, image.height) != header.size:
            raise Unreadable(f"{image.width}x{image.height}, but its header says {header.size}")
        if len(placements) > 1:
            image = image.copy_memory()
        return [_fitted(image, placement) for placement in placements]
    except pyvips.Error as error:
        raise Unreadable(_reason(error)) from None


def _fitted(image: pyvips.Image, placement: Placement) -> Image.Image:
    scaled = placement.scaled
    if (image.width, image.height) != scaled:
        image = image.resize(
            scaled.width / image.width, vscale=scaled.height / image.height, kernel="lanczos3"
        )
    # The whole picture, not only what the crop keeps: a file cut off below it is cut off too.
    pixels = image.write_to_memory()
    if (image.width, image.height, image.bands) != (scaled.width, scaled.height, 3):
        raise AssertionError(f"vips made {image.width}x{image.height}x{image.bands} for {scaled}")
    whole = Image.frombuffer("RGB", scaled, pixels, "raw", "RGB", 0, 1)
    left, top = placement.left, placement.top
    return whole.crop((left, top, left + placement.bucket.width, top + placement.bucket.height))


def _load(content: bytes, header: Header) -> pyvips.Image:
    """8-bit RGB on white, streamed from top to bottom, not turned yet."""
    load = {
        "JPEG": pyvips.Image.jpegload_buffer,
        "MPO": pyvips.Image.jpegload_buffer,
        "PNG": pyvips.Image.pngload_buffer,
        "WEBP": pyvips.Image.webpload_buffer,
    }[header.format]
    image = load(content, access="sequential", fail_on="error")
    if image.format == "ushort":
        image = image.cast("uchar", shift=True)
    image = image.copy(interpretation="b-w" if image.bands < 3 else "srgb")
    if image.hasalpha():
        # In floats: in bytes vips cuts fractions off, and every half-clear pixel comes out darker.
        image = image.cast("float").flatten(background=255, max_alpha=255).rint().cast("uchar")
    if image.bands == 1:
        image = image.bandjoin([image, image])
    return image.copy(interpretation="srgb")


def _upright(image: pyvips.Image, orientation: int) -> pyvips.Image:
    if orientation > 2:
        image = image.copy_memory()  # Turning reads rows in another order than a stream has them.
    for turn in _TURNS[orientation]:
        image = getattr(image, turn)()
    return image


def _reason(error: pyvips.Error) -> str:
    """The decoder's own words: pyvips says "unable to call", and the decoder's lines follow."""
    lines = [line.strip() for line in str(error.detail or error.message).splitlines()]
    told = [line for line in lines if line]
    return f"damaged: {told[-1] if told else 'cannot be decoded'}"
