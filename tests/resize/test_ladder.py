import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RequestError
from pipeline.recipe.resize import Resize
from pipeline.resize.ladder import (
    Placement,
    bucket_ladder,
    is_upscaled,
    ladders,
    nearest_bucket,
    place,
)
from pipeline.size import Size

LADDER_512 = (
    Size(320, 704),
    Size(320, 768),
    Size(384, 640),
    Size(448, 576),
    Size(512, 512),
    Size(576, 448),
    Size(640, 384),
    Size(704, 320),
    Size(768, 320),
)
"""By hand: 512² = 262,144; / 320 = 819 -> 768; / 384 = 682 -> 640; / 448 = 585 -> 576; / 576 = 455
-> 448; / 640 = 409 -> 384; / 704 = 372 -> 320; / 768 = 341 -> 320; / 832 = 315 is under 320."""
LADDERS = st.builds(
    lambda resolution, step, low, high: Resize(
        resolution=resolution,
        step=step,
        min_side=min(low, resolution),
        max_side=max(high, resolution),
        format="png",
    ),
    st.integers(64, 1280),
    st.sampled_from([8, 16, 32, 64]),
    st.integers(64, 512),
    st.integers(512, 2048),
)
SIZES = st.builds(Size, st.integers(1, 5000), st.integers(1, 5000))


def test_the_ladder_of_512_by_64() -> None:
    assert bucket_ladder(Resize(resolution=512)) == LADDER_512


def test_the_default_ladder_holds_the_shapes_that_the_field_knows() -> None:
    ladder = bucket_ladder(Resize())
    assert {Size(768, 768), Size(640, 896), Size(896, 640), Size(384, 1536)} <= set(ladder)
    assert len(ladder) == len(set(ladder))


def test_the_longest_side_bounds_the_tallest_height() -> None:
    ladder = bucket_ladder(Resize(resolution=512, max_side=640))
    assert ladder == (
        *(Size(320, 640), Size(384, 640)),
        *LADDER_512[3:6],
        *(Size(640, 320), Size(640, 384)),
    )


def test_a_resolution_off_the_step_stays_below_its_area() -> None:
    ladder = bucket_ladder(Resize(resolution=100, step=64, min_side=64, max_side=128))
    assert ladder == (Size(64, 128), Size(128, 64))  # 64x156 is cut to 128.


@settings(deadline=None)
@given(resize=LADDERS)
def test_every_bucket_obeys_every_bound(resize: Resize) -> None:
    try:
        ladder = bucket_ladder(resize)
    except RequestError:
        return
    for size in ladder:
        assert size.area <= resize.resolution**2
        assert size.width % resize.step == size.height % resize.step == 0
        assert resize.min_side <= min(size) and max(size) <= resize.max_side
        assert Size(size.height, size.width) in ladder
    for width in {size.width for size in ladder}:
        tallest = max(size.height for size in ladder if size.width == width)
        taller = tallest + resize.step
        assert width * taller > resize.resolution**2 or taller > resize.max_side


def test_bounds_without_a_bucket_are_refused_with_a_remedy() -> None:
    with pytest.raises(RequestError, match="smaller step"):
        bucket_ladder(Resize(resolution=100, step=64, min_side=100, max_side=110))


def test_what_webp_cannot_hold_is_refused_before_any_work() -> None:
    wide = Resize(resolution=4096, min_side=64, max_side=20_000)
    with pytest.raises(RequestError, match="16383"):
        bucket_ladder(wide)
    assert bucket_ladder(wide.model_copy(update={"format": "png"}))


@settings(deadline=None)
@given(picture=SIZES, resize=LADDERS)
def test_nearest_is_nearest_by_brute_force(picture: Size, resize: Resize) -> None:
    try:
        ladder = bucket_ladder(resize)
    except RequestError:
        return

    def distance(bucket: Size) -> float:
        return abs(math.log(picture.ratio) - math.log(bucket.ratio))

    nearest = nearest_bucket(picture, ladder)
    assert distance(nearest) <= min(distance(bucket) for bucket in ladder) + 1e-12
    assert nearest_bucket(picture, tuple(reversed(ladder))) == nearest


@pytest.mark.parametrize(
    ("picture", "bucket"),
    [
        (Size(1000, 1000), Size(512, 512)),
        (Size(2000, 2800), Size(448, 576)),
        (Size(2800, 2000), Size(576, 448)),
        (Size(30_000, 40), Size(768, 320)),
        (Size(1, 1), Size(512, 512)),
    ],
)
def test_nearest_by_hand(picture: Size, bucket: Size) -> None:
    assert nearest_bucket(picture, LADDER_512) == bucket


def test_ties_go_to_the_larger_then_to_the_wider() -> None:
    assert nearest_bucket(Size(3, 3), (Size(64, 128), Size(128, 64))) == Size(128, 64)
    assert nearest_bucket(Size(1, 2), (Size(64, 128), Size(128, 256))) == Size(128, 256)


@pytest.mark.parametrize(
    ("picture", "bucket", "scaled", "left", "top"),
    [
        (Size(100, 50), Size(64, 64), Size(128, 64), 32, 0),
        (Size(2000, 2800), Size(448, 576), Size(448, 627), 0, 25),
        (Size(64, 64), Size(64, 64), Size(64, 64), 0, 0),
        (Size(1, 1), Size(64, 128), Size(128, 128), 32, 0),
        (Size(97, 64), Size(64, 64), Size(97, 64), 16, 0),
    ],
)
def test_placement_by_hand(picture: Size, bucket: Size, scaled: Size, left: int, top: int) -> None:
    assert place(picture, bucket) == Placement(bucket, scaled, left, top)


@settings(deadline=None)
@given(picture=SIZES, bucket=st.builds(Size, st.integers(8, 512), st.integers(8, 512)))
def test_the_scaled_picture_covers_the_bucket_and_touches_it(picture: Size, bucket: Size) -> None:
    placed = place(picture, bucket)
    assert placed.scaled.width >= bucket.width and placed.scaled.height >= bucket.height
    assert placed.scaled.width == bucket.width or placed.scaled.height == bucket.height
    assert 0 <= placed.scaled.width - bucket.width - 2 * placed.left <= 1
    assert 0 <= placed.scaled.height - bucket.height - 2 * placed.top <= 1


def test_upscaled_means_one_side_is_too_short() -> None:
    assert is_upscaled(Size(63, 200), Size(64, 64))
    assert not is_upscaled(Size(64, 64), Size(64, 64))


def test_each_resolution_has_a_ladder_of_its_own() -> None:
    both = Resize(resolution=512, more_resolutions=(768,))
    first, second = ladders(both)
    assert first.buckets == LADDER_512 and (first.resolution, second.resolution) == (512, 768)
    assert second.buckets == bucket_ladder(Resize(resolution=768))


@pytest.mark.parametrize(
    ("picture", "bucket"),
    [
        (Size(2000, 2800), Size(448, 576)),  # Large enough: the ladder's.
        (Size(400, 500), Size(384, 448)),  # Its nearest is 448x576: floored sides instead.
        (Size(319, 900), None),  # 319 has no multiple of 64 from 320 up.
        (Size(5000, 319), None),
        (Size(330, 700), Size(320, 640)),  # Nearest is 320x704; 700 is 10 x 64 and a rest.
        (Size(500, 500), Size(448, 448)),
    ],
)
def test_without_enlarging_small_pictures_get_buckets_inside_them(
    picture: Size, bucket: Size | None
) -> None:
    (ladder,) = ladders(Resize(resolution=512, upscale=False))
    placed = ladder.placement(picture)
    assert (placed and placed.bucket) == bucket
    if placed and placed.bucket not in LADDER_512:
        assert placed.scaled == picture


@settings(deadline=None)
@given(picture=SIZES, resize=LADDERS)
def test_without_enlarging_nothing_grows_and_every_bound_holds(
    picture: Size, resize: Resize
) -> None:
    try:
        (ladder,) = ladders(resize.model_copy(update={"upscale": False}))
    except RequestError:
        return
    placed = ladder.placement(picture)
    if placed is None:
        assert min(picture) < resize.min_side + resize.step
        return
    assert placed.scaled.width <= picture.width and placed.scaled.height <= picture.height
    assert placed.bucket.area <= resize.resolution**2
    assert resize.min_side <= min(placed.bucket) <= max(placed.bucket) <= resize.max_side
    assert placed.bucket.width % resize.step == placed.bucket.height % resize.step == 0


def test_what_a_crop_keeps() -> None:
    tall, bucket = Size(100, 300), Size(100, 100)
    assert place(tall, bucket, "center").top == 100
    assert place(tall, bucket, "top").top == 0
    assert place(Size(300, 100), bucket, "top").left == 100
    drawn = {place(tall, bucket, "random", f"{n:032x}").top for n in range(200)}
    assert min(drawn) < 10 and max(drawn) > 190 and max(drawn) <= 200
    assert place(tall, bucket, "random", "a") == place(tall, bucket, "random", "a")
