"""Which pictures look alike, by the 64 bits that the download noted of each.

Compared within a dataset by the download, and across the datasets of a build by its rounds. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.same import Same
from pipeline.recipe.size import Size

ALIKE = 4
"""Bits by which the hashes of alike pictures may differ."""
BANDS = (0, 13, 26, 39, 52, 64)
"""Bits at which a hash is cut in five. Two that differ in four bits are equal in one part: only
those that share a part need comparing."""
MANY = 64
"""Pictures that are compared each with each in one go."""


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
