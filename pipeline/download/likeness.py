"""How pictures look, as numbers: equal pixels by a digest, alike pictures by 64 bits.

The perceptual hash is the classic one of a discrete cosine transform: 32 by 32 shades of grey, of
whose 8 by 8 lowest frequencies each is above the median or not (Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010). Rescaling and re-encoding move few bits.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.artefacts.same import Same
from pipeline.recipe.size import Size

GRID = 32
"""Shades of grey a side, from which the frequencies are taken."""
LOWEST = 8
"""Frequencies a side, of which one bit each is kept."""
ALIKE = 4
"""Bits by which the hashes of alike pictures may differ."""
BANDS = (0, 13, 26, 39, 52, 64)
"""Bits at which a hash is cut in five. Two that differ in four bits are equal in one part: only
those that share a part need comparing."""
MANY = 64
"""Pictures that are compared each with each in one go."""
PLAIN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Modes of 8 bits a channel, which 8-bit RGBA holds whole."""


@dataclass(frozen=True)
class Looks:
    """Of one decoded picture."""

    pixels: str
    """md5 of its size and its RGBA bytes: equal for equal pictures in different files."""
    likeness: int
    """The 64 bits, as the signed number that SQLite holds."""


@dataclass(frozen=True)
class Seen:
    """A picture to compare."""

    md5: str
    size: Size
    likeness: int


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


def alike(pictures: Sequence[Seen]) -> list[list[str]]:
    """Groups of md5s of pictures that look alike: hashes ALIKE bits apart or less, one shape.

    Sorted, each picture in one group at most; chains count, as variants of one drawing do.
    """
    # Unsigned, for numpy counts the bits of a number's absolute value.
    hashes = np.array([p.likeness for p in pictures], dtype=np.int64).view(np.uint64)
    ratios = np.array([picture.size.ratio if picture.size.height else 0.0 for picture in pictures])
    same = Same[int]()
    for low, high in pairwise(BANDS):
        part = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(part, kind="stable")
        cuts = np.flatnonzero(np.diff(part[order])) + 1
        for bucket in np.split(order, cuts):
            if len(bucket) > 1 and _may_join(bucket, hashes):
                _join(bucket, hashes, ratios, same)
    found: dict[int, list[str]] = {}
    for number, picture in enumerate(pictures):
        found.setdefault(same.first(number), []).append(picture.md5)
    return sorted(sorted(md5s) for md5s in found.values() if len(md5s) > 1)


def _join(
    bucket: NDArray[np.intp],
    hashes: NDArray[np.uint64],
    ratios: NDArray[np.float64],
    same: Same[int],
) -> None:
    """Joins what is alike in a bucket. One of blank pictures may be large: each of those is reached
    once, from the first of them."""
    rest = bucket
    while len(rest) > 1:
        reached, rest = [rest[0]], rest[1:]
        while reached and len(rest):
            one = reached.pop()
            near = np.bitwise_count(hashes[rest] ^ hashes[one]) <= ALIKE
            apart = np.abs(ratios[rest] - ratios[one])
            near &= apart <= 0.01 * np.maximum(ratios[rest], ratios[one])
            for other in rest[near]:
                same.join(int(one), int(other))
            reached.extend(rest[near])
            rest = rest[~near]


def _may_join(bucket: NDArray[np.intp], hashes: NDArray[np.uint64]) -> bool:
    """Whether two of a bucket differ in few bits: mostly not, and all pairs are soon compared."""
    if len(bucket) > MANY:
        return True
    found = hashes[bucket]
    pairs = np.bitwise_count(found[:, None] ^ found) <= ALIKE
    return bool(pairs.sum() > len(bucket))


def _cosines() -> NDArray[np.float64]:
    """(LOWEST, GRID): the lowest rows of the DCT-II."""
    places = (np.arange(GRID) + 0.5) * np.pi / GRID
    return np.cos(np.arange(LOWEST)[:, None] * places)


_COSINES = _cosines()
