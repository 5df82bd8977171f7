"""The report's pictures: the grid as a table that scrolls, and the plots with what they mean."""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from pipeline.artefacts.ledger import Ledger
from pipeline.preview import plots
from pipeline.preview.columns import Column, Sheet, strength_note

SHOWN_SIDE = 512
"""Larger pictures are embedded at so many pixels a side; else a report weighs what samples do."""
TINY_SIDE = 160
"""Smaller pictures are shown enlarged, with hard pixel edges."""
ROOMY_COLUMNS = 5
"""More columns are shown smaller."""
FITTING_COLUMNS = 7
"""More columns do not fit a wide window even so, and scroll."""
SIDEWAYS = '<p class="hint">Scroll the grid sideways for later rounds.</p>'


def samples(sheet: Sheet) -> str:
    """Rows are prompts, columns checkpoints."""
    if not sheet.columns:
        return '<p class="hint">No sample pictures have been drawn yet.</p>'
    heads = "".join(
        f'<th scope="col">{escape(c.title)}<span class="small">{escape(c.note)}</span></th>'
        for c in sheet.columns
    )
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f"<td>{_picture(column, row, label)}</td>" for column in sheet.columns)
        + "</tr>\n"
        for row, label in enumerate(sheet.labels())
    )
    kind = "samples many" if len(sheet.columns) > ROOMY_COLUMNS else "samples"
    hint = SIDEWAYS if len(sheet.columns) > FITTING_COLUMNS else ""
    return (
        f'{hint}<div class="card scroll"><table class="{kind}">\n'
        f"<thead><tr><td></td>{heads}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def _picture(column: Column, row: int, label: str) -> str:
    path = column.pictures[row]
    with Image.open(path) as picture:
        tiny = max(picture.size) <= TINY_SIDE
    kind = ' class="tiny"' if tiny else ""
    return f'<img{kind} src="{data_uri(path)}" alt="{escape(f"{column.title}: {label}")}">'


def data_uri(path: Path) -> str:
    """The picture in `path` as text: its own bytes, or a JPEG of SHOWN_SIDE pixels if larger."""
    with Image.open(path) as picture:
        if max(picture.size) <= SHOWN_SIDE:
            return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        smaller = picture.convert("RGB")
    smaller.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    smaller.save(out, format="JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def loss_figure(ledger: Ledger) -> str:
    """The held-out loss over the rounds; empty before round 1 is judged."""
    if not ledger.rounds:
        return ""
    return f'<figure class="card scroll">{plots.loss_plot(ledger)}</figure>'


def strength_figures(ledger: Ledger) -> str:
    """One small plot per round whose strength was searched."""
    rows = plots.searched(ledger.rounds)
    if not rows:
        return ""
    cards = "".join(
        f'<div class="card"><h3>Round {row.round}: {strength_note(row)}</h3>'
        f"{plots.strength_plot(row)}</div>\n"
        for row in rows
    )
    return (
        "<h2>How strong each round was laid on</h2>\n"
        "<p>After training, a round is tried at several strengths on one half of the held-out "
        "pictures: 0 is without it, 1 is just as trained. The lowest point is taken (red), and "
        "the other half, which had no say in the choice, judges the result. Scales differ from "
        "round to round.</p>\n"
        f'<div class="plots">{cards}</div>'
    )
