"""The aspect-ratio bucket ladder, and where a picture comes to lie in its bucket: pure arithmetic.

The field trains on pictures of about the same area and of many shapes, batched by bucket (NovelAI's
aspect ratio bucketing; kohya's sd-scripts builds its ladder the same way).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.artefacts.identity import digest_bytes
from pipeline.errors import RequestError
from pipeline.pictures.placement import Placement, Plan
from pipeline.pictures.unreadable import Unreadable
from pipeline.recipe.resize import Crop, Resize
from pipeline.size import Size

_WEBP_LONGEST = 16383
"""Pixels a side; the format has 14 bits for it."""


@dataclass(frozen=True)
class Ladder:
    """One resolution's buckets and the rules by which pictures come to lie in them."""

    resolution: int
    """The area side that they were made for, pixels."""
    buckets: tuple[Size, ...]
    step: int
    min_side: int
    max_side: int
    upscale: bool
    crop: Crop

    def placement(self, picture: Size, md5: str = "") -> Placement | None:
        """Where `picture`, upright, comes to lie; None where it is too small and must not grow."""
        bucket = nearest_bucket(picture, self.buckets)
        if self.upscale or not is_upscaled(picture, bucket):
            return place(picture, bucket, self.crop, md5)
        inside = self._inside(picture)
        return None if inside is None else _cut(picture, inside, self.crop, md5)

    def _inside(self, picture: Size) -> Size | None:
        """The largest bucket within `picture` as it is: its sides and area under the bounds.

        The shorter side is taken whole; of a strip, the longer one gives way to the area.
        """
        short = min(min(picture), self.max_side) // self.step * self.step
        if short < self.min_side or short == 0:
            return None
        long = min(max(picture), self.max_side, max(short, self.resolution**2 // short))
        long = long // self.step * self.step
        return Size(long, short) if picture.width >= picture.height else Size(short, long)


def ladders(resize: Resize) -> tuple[Ladder, ...]:
    """The ladder of each of its resolutions. Raises as `bucket_ladder` does."""
    return tuple(
        Ladder(
            resolution,
            bucket_ladder(resize.model_copy(update={"resolution": resolution})),
            resize.step,
            resize.min_side,
            resize.max_side,
            resize.upscale,
            resize.crop,
        )
        for resolution in resize.resolutions
    )


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


def bucket_ladder(resize: Resize) -> tuple[Size, ...]:
    """Every bucket of `resize` at its main resolution, in order of width, then height.

    Sides are multiples of the step within the two bounds, areas at most resolution². For each width
    the tallest height is taken, and for each height the widest width: so a picture on its side gets
    the bucket of the upright one on its side.

    Raises:
        RequestError: no size obeys all that, or the format cannot hold the longest side.
    """
    area, step = resize.resolution**2, resize.step
    shortest = -(-resize.min_side // step) * step
    longest = resize.max_side // step * step
    sizes: set[Size] = set()
    for side in range(shortest, longest + 1, step):
        other = min(area // side // step * step, longest)
        if other >= shortest:
            sizes |= {Size(side, other), Size(other, side)}
    if not sizes:
        raise RequestError(
            f"[resize] leaves no bucket: no multiple of {step} between {resize.min_side} and "
            f"{resize.max_side} pixels fits into {resize.resolution}x{resize.resolution}. "
            "Use a smaller step, or wider bounds."
        )
    if resize.format == "webp" and max(max(size) for size in sizes) > _WEBP_LONGEST:
        raise RequestError(
            f'[resize].format "webp" holds at most {_WEBP_LONGEST} pixels a side. '
            'Lower [resize].max_side, or use format = "png".'
        )
    return tuple(sorted(sizes))


def nearest_bucket(picture: Size, ladder: Sequence[Size]) -> Size:
    """The bucket whose aspect ratio is nearest to the picture's, as |log(w/h) - log(w'/h')|.

    Ties go to the larger area, then to the wider bucket. Compared exactly, in integers: floats
    would decide ties by rounding.
    """
    best = ladder[0]
    for bucket in ladder[1:]:
        # Both distances are logs of a fraction >= 1; the fractions compare as their logs do.
        ours, theirs = _stretch(picture, bucket), _stretch(picture, best)
        difference = ours[0] * theirs[1] - theirs[0] * ours[1]
        if difference < 0 or (
            difference == 0 and (bucket.area, bucket.width) > (best.area, best.width)
        ):
            best = bucket
    return best


def place(picture: Size, bucket: Size, crop: Crop = "center", md5: str = "") -> Placement:
    """Scales `picture` to cover `bucket` and keeps the part that `crop` says."""
    if bucket.width * picture.height >= bucket.height * picture.width:
        height = _rounded(picture.height * bucket.width, picture.width)
        scaled = Size(bucket.width, max(height, bucket.height))
    else:
        width = _rounded(picture.width * bucket.height, picture.height)
        scaled = Size(max(width, bucket.width), bucket.height)
    return _cut(scaled, bucket, crop, md5)


def _cut(scaled: Size, bucket: Size, crop: Crop, md5: str) -> Placement:
    """`bucket` out of a picture scaled to `scaled`; of the middle, odd pixels go at the far side.

    A random part is a function of the picture alone, so that every run cuts the same one.
    """
    spare = Size(scaled.width - bucket.width, scaled.height - bucket.height)
    left, top = spare.width // 2, spare.height // 2
    if crop == "top":
        top = 0
    elif crop == "random":
        drawn = digest_bytes(f"crop {md5}".encode())
        left = int(drawn[:16], 16) % (spare.width + 1)
        top = int(drawn[16:32], 16) % (spare.height + 1)
    return Placement(bucket, scaled, left, top)


def is_upscaled(picture: Size, bucket: Size) -> bool:
    """Whether `picture` is too small to cover `bucket` without being enlarged."""
    return picture.width < bucket.width or picture.height < bucket.height


def _stretch(picture: Size, bucket: Size) -> tuple[int, int]:
    """How much one ratio exceeds the other, as (numerator, denominator), at least 1."""
    one, other = picture.width * bucket.height, bucket.width * picture.height
    return (one, other) if one >= other else (other, one)


def _rounded(numerator: int, denominator: int) -> int:
    """The quotient of positive integers, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)
