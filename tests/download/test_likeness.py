"""Equal pixels and alike pictures, told apart from different ones."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.artefacts.alike import ALIKE, Seen, alike
from pipeline.download.likeness import GRID, likeness, looks
from pipeline.size import Size


def drawn(seed: int, size: tuple[int, int] = (300, 400)) -> Image.Image:
    """Some shapes, different for every seed."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(c) for c in rng.integers(0, 255, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, w, h = (int(v) for v in rng.integers(10, 200, 4))
        colour = tuple(int(c) for c in rng.integers(0, 255, 3))
        draw.ellipse((x, y, x + w, y + h), fill=colour)
    return image


def bits_apart(one: int, other: int) -> int:
    return ((one ^ other) & (2**64 - 1)).bit_count()


def test_the_hash_is_that_of_the_cosine_transform_worked_out_slowly() -> None:
    shades = np.random.default_rng(1).uniform(0, 255, (GRID, GRID))
    place = (np.arange(GRID) + 0.5) / GRID
    values = np.array(
        [
            [
                sum(
                    shades[y, x] * np.cos(np.pi * u * place[y]) * np.cos(np.pi * v * place[x])
                    for y in range(GRID)
                    for x in range(GRID)
                )
                for v in range(8)
            ]
            for u in range(8)
        ]
    ).ravel()
    median = np.median(values[1:])
    bits = "".join("0" if k == 0 else str(int(value > median)) for k, value in enumerate(values))
    assert likeness(shades) & (2**64 - 1) == int(bits, 2)


def test_equal_pixels_in_another_file_are_equal() -> None:
    image = drawn(1)
    png, webp = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG")
    image.save(webp, "WEBP", lossless=True)
    one, other = (looks(Image.open(buffer)) for buffer in (png, webp))
    assert one == other
    changed = image.copy()
    changed.putpixel((5, 5), (1, 2, 3))
    assert looks(changed).pixels != one.pixels
    # As many bytes, the same ones, in another shape.
    flat = Image.new("RGB", (20, 10), "red")
    assert looks(flat).pixels != looks(flat.rotate(90, expand=True)).pixels


@pytest.mark.parametrize("seed", range(6))
def test_scaled_and_recompressed_pictures_are_alike_and_others_are_not(seed: int) -> None:
    image = drawn(seed)
    buffer = io.BytesIO()
    image.resize((150, 200), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=70)
    small = looks(Image.open(buffer))
    assert bits_apart(looks(image).likeness, small.likeness) <= ALIKE
    assert looks(image).pixels != small.pixels
    assert bits_apart(looks(image).likeness, looks(drawn(seed + 100)).likeness) > 3 * ALIKE


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_has_looks(mode: str) -> None:
    image = Image.new(mode, (9, 7))
    assert len(looks(image).pixels) == 32


@pytest.mark.parametrize(("centres", "each"), [(40, 5), (2, 90)])
def test_groups_are_those_that_comparing_all_pairs_gives(centres: int, each: int) -> None:
    rng = np.random.default_rng(4)
    hashes: list[int] = []
    for centre in rng.integers(0, 2**63, centres):
        for _ in range(each):
            flips = rng.choice(64, rng.integers(0, 7), replace=False)
            value = int(centre) ^ sum(1 << int(bit) for bit in flips)
            hashes.append(value - 2**64 if value >= 2**63 else value)
    pictures = [Seen(f"{n:032x}", Size(100, 100), value) for n, value in enumerate(hashes)]
    group = list(range(len(hashes)))
    for one in range(len(hashes)):
        for other in range(one):
            if bits_apart(hashes[one], hashes[other]) <= ALIKE and group[one] != group[other]:
                group = [group[other] if g == group[one] else g for g in group]
    expected: dict[int, list[str]] = {}
    for number, which in enumerate(group):
        expected.setdefault(which, []).append(pictures[number].md5)
    assert alike(pictures) == sorted(sorted(md5s) for md5s in expected.values() if len(md5s) > 1)


def test_another_shape_is_not_alike() -> None:
    tall, wide = Seen("a", Size(100, 200), 5), Seen("b", Size(200, 100), 5)
    assert alike([tall, wide]) == []
    assert alike([tall, Seen("c", Size(50, 100), 5)]) == [["a", "c"]]
    assert alike([]) == []


def test_many_blank_pictures_are_one_group_and_no_wait() -> None:
    """Comparing each of them with each would take minutes."""
    blank = [Seen(f"{n:032x}", Size(100, 100), 7) for n in range(30_000)]
    near = [Seen(f"{n:032x}", Size(100, 100), n) for n in range(30_000, 30_000 + 2**10)]
    groups = alike([*blank, *near])
    assert next(len(group) for group in groups if blank[0].md5 in group) >= len(blank)
