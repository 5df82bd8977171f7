"""Masks of every kind of file: how much of each pixel counts, where its picture comes to lie."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures.placement import Placement
from pipeline.pictures.read import read_mask, same_shape
from pipeline.pictures.unreadable import Unreadable
from pipeline.size import Size

SIZE = Size(4, 2)
WHOLE = Placement(SIZE, SIZE, 0, 0)


def _grey(values: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(values, np.uint8))


VALUES = [[0, 51, 128, 255], [255, 128, 51, 0]]


def _clear() -> Image.Image:
    """White under alpha."""
    image = Image.new("RGBA", SIZE, "white")
    image.putalpha(_grey(VALUES))
    return image


def _palette() -> Image.Image:
    image = Image.new("P", SIZE)
    image.putpalette([v for grey in (0, 51, 128, 255) for v in (grey, grey, grey)])
    image.putdata([0, 1, 2, 3, 3, 2, 1, 0])
    return image


def _deep() -> Image.Image:
    return Image.fromarray(np.array(VALUES, np.uint16) * 257)


@pytest.mark.parametrize(
    "make",
    [
        lambda: _grey(VALUES),
        lambda: _grey(VALUES).convert("RGB"),
        lambda: _grey(VALUES).convert("RGBA"),
        lambda: Image.merge("LA", (Image.new("L", SIZE, 255), _grey(VALUES))),
        _clear,
        _palette,
        _deep,
    ],
    ids=["L", "RGB", "RGBA", "LA", "clear", "palette", "16 bits"],
)
def test_brightness_over_black_counts(make: Callable[[], Image.Image], tmp_path: Path) -> None:
    make().save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", SIZE, WHOLE)
    assert np.asarray(mask).tolist() == VALUES


def test_two_levels_and_a_turn(tmp_path: Path) -> None:
    """Turned by a quarter clockwise, what was left is above."""
    turned = Image.Exif()
    turned[0x0112] = 6
    lines = _grey([[255, 255, 0, 0]] * 4).convert("1")
    lines.save(tmp_path / "mask.png", exif=turned)
    square = Size(4, 4)
    mask = read_mask(tmp_path / "mask.png", square, Placement(square, square, 0, 0))
    assert np.asarray(mask).tolist() == [[255] * 4] * 2 + [[0] * 4] * 2


def test_a_small_mask_is_cut_where_its_large_picture_is(tmp_path: Path) -> None:
    """A picture of 400 x 100, scaled to 200 x 50 and cut to 50 x 50 from 100 on."""
    levels = np.repeat(np.array([[0, 64, 128, 255]], np.uint8), 10, axis=1)
    Image.fromarray(np.repeat(levels, 10, axis=0)).save(tmp_path / "mask.png")
    place = Placement(Size(50, 50), Size(200, 50), 100, 0)
    mask = np.asarray(read_mask(tmp_path / "mask.png", Size(400, 100), place))
    # Lanczos reads three pixels of the mask, 15 of these, beyond an edge.
    assert mask.shape == (50, 50) and set(mask[:, 16:34].flat) == {128}


def test_shapes_are_the_same_to_a_pixel(tmp_path: Path) -> None:
    picture = Size(1001, 667)
    for mask in (Size(1001, 667), Size(500, 333), Size(501, 334), Size(64, 43), Size(2002, 1334)):
        assert same_shape(mask, picture) and same_shape(picture, mask)
    for mask in (Size(667, 1001), Size(500, 320), Size(1001, 1001)):
        assert not same_shape(mask, picture)
    _grey(VALUES).save(tmp_path / "mask.png")
    with pytest.raises(Unreadable, match="4x2, which is not the shape of its picture, 2x4"):
        read_mask(tmp_path / "mask.png", Size(2, 4), WHOLE)
