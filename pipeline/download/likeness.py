"""How pictures look, as numbers: equal pixels by a digest, alike pictures by 64 bits.

The perceptual hash is the classic one of a discrete cosine transform: 32 by 32 shades of grey, of
whose 8 by 8 lowest frequencies each is above the median or not (Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010). Rescaling and re-encoding move few bits.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GRID = 32
"""Shades of grey a side, from which the frequencies are taken."""
LOWEST = 8
"""Frequencies a side, of which one bit each is kept."""
PLAIN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Modes of 8 bits a channel, which 8-bit RGBA holds whole."""


@dataclass(frozen=True)
class Looks:
    """Of one decoded picture."""

    pixels: str
    """md5 of its size and its RGBA bytes: equal for equal pictures in different files."""
    likeness: int
    """The 64 bits, as the signed number that SQLite holds."""


def looks(image: Image.Image) -> Looks:
    """Of a picture that is decoded."""
    mode = "RGBA" if image.mode in PLAIN else image.mode
    whole = image if image.mode == mode else image.convert(mode)
    hasher = hashlib.md5(f"{mode} {image.width} {image.height}".encode(), usedforsecurity=False)
    hasher.update(whole.tobytes())
    if mode == "RGBA":
        small = whole.resize((GRID, GRID), Image.Resampling.BOX, reducing_gap=2.0)
        paper = Image.new("RGBA", small.size, "white")
        grey = Image.alpha_composite(paper, small).convert("L")
    else:
        grey = whole.resize((GRID, GRID), Image.Resampling.NEAREST).convert("F")
    return Looks(hasher.hexdigest(), likeness(np.asarray(grey, dtype=np.float64)))


def likeness(shades: NDArray[np.float64]) -> int:
    """The hash of a GRID by GRID array of shades, as a signed number of 64 bits."""
    lowest = (_COSINES @ shades @ _COSINES.T).ravel()
    # The first frequency is the mean shade: it would say "bright" and nothing of the picture, and
    # would pull the median of the others.
    bits = lowest > np.median(lowest[1:])
    bits[0] = False
    return int(np.packbits(bits).view(">i8")[0])


def _cosines() -> NDArray[np.float64]:
    """(LOWEST, GRID): the lowest rows of the DCT-II."""
    places = (np.arange(GRID) + 0.5) * np.pi / GRID
    return np.cos(np.arange(LOWEST)[:, None] * places)


_COSINES = _cosines()
