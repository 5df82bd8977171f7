"""What a bucket ladder does to a dataset: buckets, counts, what cropping loses, what is enlarged.

urushi resize RECIPE --show

Counted from the resized pictures, or before there are any from the sizes that posts state.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.artefacts.records import ImageRecord, ResizedRecord
from pipeline.resize.ladder import Ladder, is_upscaled
from pipeline.size import Size


@dataclass(frozen=True)
class Placed:
    """One picture's place in one bucket."""

    original: Size
    scaled: Size
    bucket: Size


@dataclass(frozen=True)
class BucketSurvey:
    """One bucket."""

    bucket: Size
    pictures: int
    enlarged: int
    """Smaller than the bucket, and not left as they are."""
    lost: float
    """Mean share of a picture's pixels that cropping cuts off, 0 to 1."""


@dataclass(frozen=True)
class Survey:
    """All buckets in use, from the tallest shape to the widest, and what fits in none."""

    buckets: tuple[BucketSurvey, ...]
    pictures: int
    """Places: a picture counts once for each resolution."""
    enlarged: int
    lost: float
    """Mean over all places, as BucketSurvey's."""
    left_out: int
    """Too small for any bucket, damaged, or of a size that nobody stated."""


def survey(places: Iterable[Placed], left_out: int) -> Survey:
    """The survey of `places`."""
    by_bucket: dict[Size, list[Placed]] = {}
    for place in places:
        by_bucket.setdefault(place.bucket, []).append(place)
    buckets = tuple(
        BucketSurvey(bucket, len(here), sum(map(_enlarged, here)), _mean([_lost(p) for p in here]))
        for bucket, here in sorted(by_bucket.items(), key=lambda item: (item[0].ratio, item[0]))
    )
    pictures = sum(one.pictures for one in buckets)
    return Survey(
        buckets,
        pictures,
        enlarged=sum(one.enlarged for one in buckets),
        lost=sum(one.lost * one.pictures for one in buckets) / max(1, pictures),
        left_out=left_out,
    )


def resized_places(rows: Iterable[ResizedRecord]) -> list[Placed]:
    """The places of pictures that are resized."""
    return [
        Placed(
            Size(row.original_width, row.original_height),
            Size(row.scaled_width, row.scaled_height),
            Size(row.width, row.height),
        )
        for row in rows
    ]


def expected_places(
    images: Iterable[ImageRecord], ladders: Sequence[Ladder]
) -> tuple[list[Placed], int]:
    """The places that pictures of the stated sizes will get, and how many get none."""
    places: list[Placed] = []
    left_out = 0
    for image in images:
        size = Size(image.width, image.height)
        found = [ladder.placement(size, image.md5) for ladder in ladders] if size.area else []
        placements = dict.fromkeys(one for one in found if one)
        places += [Placed(size, one.scaled, one.bucket) for one in placements]
        left_out += not placements
    return places, left_out


def _enlarged(place: Placed) -> bool:
    return is_upscaled(place.original, place.scaled)


def _lost(place: Placed) -> float:
    return 1 - place.bucket.area / place.scaled.area


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
