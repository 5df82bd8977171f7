"""Sample pictures into one labelled PNG: rows are shots, columns are checkpoints.

Pure of clocks and chance: the same pictures and words give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from pipeline.artefacts.files import atomic
from pipeline.errors import UrushiError
from pipeline.size import Size

Colour = tuple[int, int, int]

PAPER: Colour = (250, 248, 244)
INK: Colour = (38, 31, 28)
MUTED: Colour = (122, 110, 102)

Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Layout:
    """Where everything lies, pixels."""

    cell: Size
    """A picture, enlarged."""
    pitch: int
    """Width of a column: the picture's, or its title's where that is wider."""
    text: int
    """Letter size."""
    line: int
    gap: int
    edge: int
    label: int
    """Width of the prompts' column."""
    header: int
    rows: tuple[int, ...]
    """Height of each row: the picture's, or its prompt's where that is taller."""
    columns: int

    def left(self, column: int) -> int:
        return self.edge + self.label + 2 * self.gap + column * (self.pitch + self.gap)

    def top(self, row: int) -> int:
        return self.edge + self.header + sum(self.rows[:row]) + row * self.gap

    @property
    def size(self) -> Size:
        return Size(
            self.left(self.columns) - self.gap + self.edge,
            self.top(len(self.rows)) - self.gap + self.edge,
        )


def write_grid(
    columns: Sequence[tuple[str, list[Path]]],
    labels: Sequence[str],
    enlarge: int,
    out: Path,
) -> None:
    """Writes `out`, a PNG.

    Args:
        columns: (title, one picture per row). A title's first line is set bold, others pale.
        labels: of the rows; a label's first line is set dark, others pale.
        enlarge: every pixel is shown as so many by so many.

    Raises:
        UrushiError: pictures of different sizes, or one that cannot be read.
        ValueError: no columns or rows, or a column of another length than `labels`.
    """
    if not columns or not labels:
        raise ValueError("a grid needs at least one column and one row")
    pictures = [[_picture(path) for path in paths] for _, paths in columns]
    if any(len(column) != len(labels) for column in pictures):
        raise ValueError(f"every column needs {len(labels)} pictures, one per row")
    first = Size(*pictures[0][0].size)
    for (_, paths), column in zip(columns, pictures, strict=True):
        for path, picture in zip(paths, column, strict=True):
            if picture.size != first:
                raise UrushiError(
                    f"{path} is {Size(*picture.size)} where {columns[0][1][0]} is {first}. "
                    f"Delete {path.parent} and run `urushi preview` again."
                )
    titles = [title.split("\n") for title, _ in columns]
    cell = Size(first.width * enlarge, first.height * enlarge)
    text = max(13, cell.width // 24)
    plain, bold = typeface(text), typeface(text, "Bold")
    words = [_label(label, plain, 13 * text) for label in labels]
    layout = lay_out(cell, titles, [[line for line, _ in lines] for lines in words], text)
    sheet = Image.new("RGB", layout.size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (lines, column) in enumerate(zip(titles, pictures, strict=True)):
        x = layout.left(index)
        for number, line in enumerate(lines):
            font, colour = (bold, INK) if number == 0 else (plain, MUTED)
            pen.text((x, layout.edge + number * layout.line), line, colour, font)
        for row, picture in enumerate(column):
            shown = picture.resize(cell, Image.Resampling.NEAREST)
            sheet.paste(shown, (x, layout.top(row)))
    for row, coloured in enumerate(words):
        for number, (line, colour) in enumerate(coloured):
            pen.text((layout.edge, layout.top(row) + number * layout.line), line, colour, plain)
    with atomic(out) as temporary:
        sheet.save(temporary, format="PNG")


def lay_out(cell: Size, titles: list[list[str]], labels: list[list[str]], text: int) -> Layout:
    """Places titles and labels around pictures of `cell` pixels, in letters of `text` pixels."""
    plain, bold = typeface(text), typeface(text, "Bold")
    widths = [
        (bold if number == 0 else plain).getlength(words)
        for lines in titles
        for number, words in enumerate(lines)
    ]
    line = text * 7 // 5
    return Layout(
        cell=cell,
        pitch=max(cell.width, *(int(width) + 1 for width in widths)),
        text=text,
        line=line,
        gap=text * 2 // 3,
        edge=text * 2,
        label=13 * text,
        header=max(len(lines) for lines in titles) * line + text // 2,
        rows=tuple(max(cell.height, len(lines) * line) for lines in labels),
        columns=len(titles),
    )


def _label(text: str, font: Font, width: int) -> list[tuple[str, Colour]]:
    """Lines of at most `width` pixels with their colours."""
    first, *others = text.split("\n")
    lines = [(line, INK) for line in wrap(first, font, width)]
    return lines + [(line, MUTED) for other in others for line in wrap(other, font, width)]


def typeface(size: int, weight: Literal["", "Bold"] = "") -> Font:
    """DejaVu Sans, which matplotlib carries: there on every machine, the same on every machine."""
    name = f"DejaVuSans-{weight}.ttf" if weight else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    # The basic layout does not depend on whether the machine has libraqm.
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def wrap(text: str, font: Font, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels, broken at spaces, or inside an overlong word."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise UrushiError(
            f"{path} cannot be read as a picture ({error}). "
            f"Delete {path.parent} and run `urushi preview` again."
        ) from None
