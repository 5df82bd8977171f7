"""The pictures of a build in the report: a divider between two columns, and the whole grid."""

import base64
import io
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from pipeline.preview.columns import Column, Sheet

TINY_SIDE = 160
"""Smaller pictures are embedded as they are, and shown enlarged with hard pixel edges."""
BUDGET = 4_000_000
"""Bytes of all pictures together, about."""
SIDES = (512, 448, 384, 320, 256)
"""Pixels a side that larger pictures are embedded at: the largest that the budget bears."""
BYTES_A_PIXEL = 0.22
"""Of a WebP picture at QUALITY, about."""
QUALITY = 82


@dataclass(frozen=True)
class Embedded:
    """A picture as text."""

    uri: str
    tiny: bool


def pictures(sheet: Sheet) -> str:
    """The divider, which the page's script brings to life, and under it the grid."""
    if not sheet.columns:
        return '<p class="hint">No sample pictures have been drawn yet.</p>'
    # A round that was left out looks like the column before it: said in the table of rounds.
    columns = [column for column in sheet.columns if column.laid]
    side = embedded_side(len(columns) * len(sheet.shots))
    return _divider(sheet, columns) + _grid(sheet, columns, side)


def embedded_side(count: int) -> int:
    """Pixels a side at which `count` pictures stay within BUDGET."""
    fitting = [side for side in SIDES if count * side * side * BYTES_A_PIXEL <= BUDGET]
    return fitting[0] if fitting else SIDES[-1]


def embed(path: Path, side: int) -> Embedded:
    """The picture in `path`, no larger than `side` pixels: the same file gives the same text."""
    with Image.open(path) as picture:
        if max(picture.size) <= TINY_SIDE:
            return Embedded(_uri("png", path.read_bytes()), True)
        smaller = picture.convert("RGB")
    smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    smaller.save(out, format="WEBP", quality=QUALITY, method=4)
    return Embedded(_uri("webp", out.getvalue()), False)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _divider(sheet: Sheet, columns: list[Column]) -> str:
    if len(columns) < 2:
        return ""
    shots = "".join(
        f'<option value="{row}">{escape(label.replace(chr(10), ", "))}</option>'
        for row, label in enumerate(sheet.labels())
    )
    return (
        '<div class="compare" hidden>\n'
        '<div class="bar one"><button type="button" class="before" aria-label="previous prompt">'
        '&#8249;</button><label class="shot"><span class="unseen">Prompt</span>'
        f'<select name="shot">{shots}</select></label>'
        '<button type="button" class="after" aria-label="next prompt">&#8250;</button></div>\n'
        '<div class="stage"><img class="under" alt=""><img class="over" alt="">'
        '<span class="from" aria-hidden="true"></span><span class="to" aria-hidden="true"></span>'
        '<i class="divider" aria-hidden="true"></i>'
        '<input type="range" name="cut" min="0" max="100" value="50" '
        'aria-label="divider between the two models"></div>\n'
        '<div class="bar"><label>Left '
        f'<select name="left">{_options(columns, 0)}</select></label>'
        f'<label>Right <select name="right">{_options(columns, len(columns) - 1)}</select>'
        "</label></div>\n"
        '<p class="hint">Drag the divider, or focus it and use the arrow keys. '
        "A click on a picture below brings it up here.</p></div>\n"
    )


def _options(columns: list[Column], chosen: int) -> str:
    return "".join(
        f'<option value="{column.number}"{" selected" if place == chosen else ""}>'
        f"{escape(column.title)}</option>"
        for place, column in enumerate(columns)
    )


def _grid(sheet: Sheet, columns: list[Column], side: int) -> str:
    rows = "".join(
        f'<div class="strip"><p class="prompt">{_label(label)}</p>'
        + "".join(_cell(column, row, label, side) for column in columns)
        + "</div>\n"
        for row, label in enumerate(sheet.labels())
    )
    return f'<div class="card strips" style="--columns: {len(columns)}">\n{rows}</div>'


def _label(label: str) -> str:
    prompt, _, seed = label.partition("\n")
    return escape(prompt) + (f'<span class="small">{escape(seed)}</span>' if seed else "")


def _cell(column: Column, row: int, label: str, side: int) -> str:
    picture = embed(column.pictures[row], side)
    kind = ' class="tiny"' if picture.tiny else ""
    alt = escape(f"{column.title}: {label.replace(chr(10), ', ')}")
    return (
        f'<figure><img{kind} data-row="{row}" data-column="{column.number}" '
        f'src="{picture.uri}" alt="{alt}">'
        f"<figcaption>{escape(column.title)}"
        f'<span class="small">{escape(column.note)}</span></figcaption></figure>'
    )
