from pathlib import Path

from PIL import Image

from pipeline.artefacts.records import ImageRecord
from pipeline.recipe.resize import Resize
from pipeline.resize.histogram import draw_histogram
from pipeline.resize.ladder import ladders
from pipeline.resize.survey import expected_places, survey
from pipeline.size import Size


def image(width: int, height: int) -> ImageRecord:
    return ImageRecord(
        md5="0" * 32, path="", width=width, height=height, tags={}, score=None, rating="", source=""
    )


def test_buckets_counts_and_losses_by_hand() -> None:
    """512: 1000x2000 goes to 320x704, scaled to 352x704: 1 - 320/352 = 1/11 is lost."""
    images = [image(1000, 2000), image(1000, 1000), image(100, 100), image(0, 0)]
    found = survey(*expected_places(images, ladders(Resize(resolution=512))))
    tall, square = found.buckets
    assert (tall.bucket, tall.pictures, tall.enlarged) == (Size(320, 704), 1, 0)
    assert abs(tall.lost - 1 / 11) < 1e-12
    assert (square.bucket, square.pictures, square.enlarged, square.lost) == (
        Size(512, 512),
        2,
        1,
        0,
    )
    assert (found.pictures, found.enlarged, found.left_out) == (3, 1, 1)
    assert abs(found.lost - 1 / 33) < 1e-12


def test_pictures_left_as_they_are_are_not_enlarged() -> None:
    rungs = ladders(Resize(resolution=512, upscale=False))
    found = survey(*expected_places([image(400, 500), image(100, 100)], rungs))
    assert [(one.bucket, one.enlarged) for one in found.buckets] == [(Size(384, 448), 0)]
    assert found.left_out == 1


def test_the_histogram_is_a_picture_of_its_size(tmp_path: Path) -> None:
    images = [image(400 + 37 * n % 900, 500 + 91 * n % 800) for n in range(300)]
    found = survey(*expected_places(images, ladders(Resize(resolution=512))))
    draw_histogram(found, "set", tmp_path / "buckets.png")
    with Image.open(tmp_path / "buckets.png") as drawn:
        assert drawn.width == 990 and drawn.height > 300
        assert len(drawn.convert("RGB").getcolors(1 << 20) or ()) > 100
