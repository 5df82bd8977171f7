from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import UrushiError
from pipeline.preview.grid import PAPER, lay_out, typeface, wrap, write_grid
from pipeline.size import Size

RED, GREEN, BLUE = (200, 10, 10), (10, 200, 10), (10, 10, 200)
SMALL = Size(4, 4)


def picture(path: Path, *colours: tuple[int, int, int], size: Size = SMALL) -> Path:
    """Filled with the first colour; its first row goes on with the others."""
    image = Image.new("RGB", size, colours[0])
    for x, colour in enumerate(colours):
        image.putpixel((x, 0), colour)
    image.save(path)
    return path


def test_pixels_stand_where_the_layout_puts_them(tmp_path: Path) -> None:
    first = picture(tmp_path / "a.png", RED, GREEN)
    second = picture(tmp_path / "b.png", BLUE)
    out = tmp_path / "grid.png"
    write_grid([("origin\nno", [first]), ("round 1\nyes", [second])], ["a circle"], 50, out)
    # Letters of max(13, 200 // 24) = 13 pixels, lines of 13 * 7 // 5 = 18, gaps of 13 * 2 // 3 = 8,
    # edges of 26, labels 13 * 13 = 169 wide, a header of 2 * 18 + 13 // 2 = 42.
    left, top, next_left = 26 + 169 + 16, 26 + 42, 26 + 169 + 16 + 200 + 8
    with Image.open(out) as opened:
        grid = opened.convert("RGB")
    assert grid.size == (next_left + 200 + 26, top + 200 + 26)
    assert grid.getpixel((left, top)) == RED
    assert grid.getpixel((left + 49, top + 49)) == RED
    assert grid.getpixel((left + 50, top + 49)) == GREEN  # Enlarged with hard edges.
    assert grid.getpixel((left + 50, top + 50)) == RED
    assert grid.getpixel((left + 199, top + 199)) == RED
    assert grid.getpixel((next_left, top)) == BLUE
    for empty in ((left - 1, top), (left + 200, top), (left, top - 1), (left, top + 200), (0, 0)):
        assert grid.getpixel(empty) == PAPER


def test_titles_and_prompts_are_written_beside_the_pictures(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", BLUE)
    boxes = []
    for title, prompt in (("origin", "a"), ("", "a"), ("origin", "")):
        write_grid([(title, [path])], [prompt], 50, tmp_path / "grid.png")
        with Image.open(tmp_path / "grid.png") as grid:
            header = grid.crop((211, 26, 411, 44)).getcolors()
            label = grid.crop((26, 44 + 6, 195, 68)).getcolors()
        assert header and label
        boxes.append((len(header) > 1, len(label) > 1))
    assert boxes == [(True, True), (False, True), (True, False)]


def test_the_same_pictures_give_the_same_bytes(tmp_path: Path) -> None:
    columns = [("origin", [picture(tmp_path / "a.png", RED)] * 2)]
    for name in ("one.png", "two.png"):
        write_grid(columns, ["a", "b"], 3, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    write_grid(columns, ["a", "c"], 3, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_a_long_prompt_makes_its_row_taller_and_a_long_title_its_column_wider() -> None:
    cell = Size(16, 16)
    layout = lay_out(cell, [["t"], ["t"]], [["one"], ["1", "2", "3"], ["one"]], 13)
    assert layout.rows == (18, 54, 18)
    assert [layout.top(row) - layout.top(0) for row in (1, 2)] == [18 + 8, 18 + 8 + 54 + 8]
    title = "round 1 of very many"
    wide = lay_out(cell, [[title], ["t"]], [["one"]], 13)
    assert wide.left(1) - wide.left(0) - wide.gap >= typeface(13, "Bold").getlength(title)


def test_wrapping_loses_nothing_and_fits() -> None:
    font = typeface(13)
    text = "1girl, solo, a_tag_that_is_far_too_long_for_any_line_of_this_width, night sky, stars"
    lines = wrap(text, font, 120)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(font.getlength(line) <= 120 for line in lines)
    assert len(lines) > 3
    assert wrap("", font, 120) == [""]


def test_refuses_pictures_of_another_size_and_files_that_are_none(tmp_path: Path) -> None:
    good = picture(tmp_path / "a.png", RED)
    other = picture(tmp_path / "b.png", RED, size=Size(8, 4))
    with pytest.raises(UrushiError, match=r"b\.png is 8x4 where .*a\.png is 4x4"):
        write_grid([("o", [good]), ("r", [other])], ["p"], 1, tmp_path / "grid.png")
    broken = tmp_path / "c.png"
    broken.write_bytes(good.read_bytes()[:40])
    with pytest.raises(UrushiError, match=r"c\.png cannot be read as a picture"):
        write_grid([("o", [broken])], ["p"], 1, tmp_path / "grid.png")
    assert not (tmp_path / "grid.png").exists()
