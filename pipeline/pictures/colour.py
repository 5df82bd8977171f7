"""Decoded pixels of any mode into 8-bit sRGB on white, with Pillow.

Profiles are obeyed: a picture in Display P3 or Adobe RGB looks pale where its numbers are taken
for sRGB's. A profile that cannot be used, or is of another colour space than the pixels, is no
reason to lose a picture: it is left aside, as browsers do.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageCms

_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_NOTICEABLE = 2
"""Levels of 255: profiles that stay below are sRGB under another name."""


def needs_conversion(profile: bytes, mode: str) -> bool:
    """Whether pixels of Pillow's `mode` look different once `profile` is obeyed."""
    return bool(profile) and _changes(profile, _colours_of(mode))


def to_rgb(image: Image.Image, profile: bytes) -> Image.Image:
    """`image` as mode RGB: profile obeyed, 16 bits to the upper 8, transparency laid over white."""
    image = _in_bands(image)
    alpha = _alpha(image)
    if alpha is not None:
        image = image.convert(image.mode[:-1])
    if needs_conversion(profile, image.mode):
        image = _to_srgb(image, profile)
    image = image.convert("RGB")
    if alpha is None:
        return image
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=alpha)
    return paper


def alpha_of(image: Image.Image) -> Image.Image | None:
    """How opaque `image` is, mode L, 255 where nothing shines through; None where it has no
    transparency."""
    return _alpha(_in_bands(image))


def to_grey(image: Image.Image) -> Image.Image:
    """`image` as mode L, by its numbers alone: no profile is obeyed. Transparency is laid over
    black, so that what was left clear in a mask counts nothing."""
    image = _in_bands(image)
    alpha = _alpha(image)
    if alpha is None:
        return image.convert("L")
    return ImageChops.multiply(image.convert(image.mode[:-1]).convert("L"), alpha)


def _in_bands(image: Image.Image) -> Image.Image:
    """As L, LA, RGB, RGBA or CMYK: transparency in a band of its own."""
    image = _eight_bits(image)
    if image.mode in ("P", "PA"):
        # A palette without a clear colour comes out opaque.
        return image.convert("RGBA")
    if "transparency" in image.info:
        return image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    if image.mode in ("RGBX", "YCbCr"):
        return image.convert("RGB")
    return image.convert("L") if image.mode == "1" else image


def _alpha(image: Image.Image) -> Image.Image | None:
    return image.getchannel("A") if image.mode in ("LA", "RGBA") else None


def _eight_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I;16"):
        return image
    # By hand, because Pillow's own conversion has clipped in one version and shifted in another.
    return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))


def _colours_of(mode: str) -> str:
    if mode in ("1", "L", "LA") or mode.startswith("I;16"):
        return "L"
    return "CMYK" if mode == "CMYK" else "RGB"


@lru_cache(maxsize=64)
def _changes(profile: bytes, colours: str) -> bool:
    """Tried on a grid of colours, because names say little: there are dozens of sRGB profiles."""
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    if colours == "L":
        grid = Image.fromarray(levels[None, :])
    elif colours == "RGB":
        axes = np.meshgrid(levels, levels, levels, indexing="ij")
        grid = Image.fromarray(np.stack(axes, axis=-1).reshape(1, -1, 3))
    else:
        grid = Image.new("CMYK", (1, 1))
    try:
        converted = _to_srgb(grid, profile)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return False
    if colours == "CMYK":
        return True
    plain = np.asarray(grid.convert("RGB")).astype(int)
    return bool(np.abs(np.asarray(converted).astype(int) - plain).max() > _NOTICEABLE)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Raises PyCMSError for a profile that is damaged or meant for other colours."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if source.profile.xcolor_space.strip() != _SPACES[image.mode]:
        raise ImageCms.PyCMSError("the profile is for another colour space")
    target = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    assert converted is not None  # Only in-place conversion returns nothing.
    return converted
