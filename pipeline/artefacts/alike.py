"""Which pictures look alike, by the 64 bits that the download noted of each.

Compared within a dataset by the download, and across the datasets of a build by its rounds. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.same import Same
from pipeline.size import Size

ALIKE = 4
"""Bits by which the hashes of alike pictures may differ."""
BANDS = (0, 13, 26, 39, 52, 64)
"""Bits at which a hash is cut in five. Two that differ in four bits are equal in one part: only
those that share a part need comparing."""
MANY = 64
"""Pictures of one part of which each is compared with each. Larger ones are mostly blank pages."""


@dataclass(frozen=True)
class Seen:
    """A picture to compare."""

    md5: str
    size: Size
    likeness: int
    """The 64 bits, as a signed number."""


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
        sizes = np.unique(part, return_counts=True)[1]
        many = sizes > MANY
        for end, size in zip(np.cumsum(sizes)[many], sizes[many], strict=True):
            _join(order[end - size : end], hashes, ratios, same)
        # Of small buckets each with the next, with the one after that, of all buckets at once.
        few = order[~np.repeat(many, sizes)]
        for apart in range(1, MANY):
            shared = part[few[apart:]] == part[few[:-apart]]
            if not shared.any():
                break
            one, other = few[:-apart][shared], few[apart:][shared]
            near = _near(hashes, ratios, one, other)
            for pair in zip(one[near].tolist(), other[near].tolist(), strict=True):
                same.join(*pair)
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
            near = _near(hashes, ratios, rest, one)
            for other in rest[near]:
                same.join(int(one), int(other))
            reached.extend(rest[near])
            rest = rest[~near]


def _near(
    hashes: NDArray[np.uint64],
    ratios: NDArray[np.float64],
    these: NDArray[np.intp],
    those: NDArray[np.intp] | np.intp,
) -> NDArray[np.bool_]:
    """Whether pictures look alike, pair by pair: few bits apart and of one shape."""
    near: NDArray[np.bool_] = np.bitwise_count(hashes[these] ^ hashes[those]) <= ALIKE
    apart = np.abs(ratios[these] - ratios[those])
    near &= apart <= 0.01 * np.maximum(ratios[these], ratios[those])
    return near
