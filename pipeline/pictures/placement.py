"""A picture's place in a bucket: what decoding, scaling and cropping are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.size import Size


@dataclass(frozen=True, slots=True)
class Placement:
    """Scale a picture to `scaled`, cut off `left` and `top` pixels, and keep `bucket`."""

    bucket: Size
    scaled: Size
    """Covers the bucket, and touches it along one side at least unless enlarging is off."""
    left: int
    top: int


Plan = Callable[[Size], Sequence[Placement]]
"""A picture's size, upright, to all its places."""
