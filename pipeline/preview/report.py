"""The ledger, the samples and the recipe into report.html: one file that opens without network.

The same build gives the same bytes. By hand: `urushi preview RECIPE`.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from pipeline.artefacts.files import write_text
from pipeline.artefacts.ledger import Ledger
from pipeline.artefacts.workspace import BuildFolder
from pipeline.preview import figures, sections
from pipeline.preview.columns import Sheet, read_sheet
from pipeline.preview.counts import StageCount
from pipeline.preview.page import page
from pipeline.preview.products import products


def write_report(folder: BuildFolder, ledger: Ledger, counts: Sequence[StageCount] = ()) -> Path:
    """Writes the build's report.html, unless it is there with this content; returns its path.

    Args:
        counts: what the data stages made, which the ledger does not know.

    Raises:
        DiskFullError, RequestError: it cannot be written.
    """
    last = max((row.round for row in ledger.rounds), default=0)
    sheet = read_sheet(folder, ledger.rounds, last)
    recipe = folder.recipe.read_text(encoding="utf-8") if folder.recipe.is_file() else None
    text = render(folder, ledger, sheet, recipe, counts)
    if not folder.report.is_file() or folder.report.read_bytes() != text.encode():
        write_text(folder.report, text)
    return folder.report


def render(
    folder: BuildFolder,
    ledger: Ledger,
    sheet: Sheet,
    recipe: str | None,
    counts: Sequence[StageCount],
) -> str:
    """The whole page."""
    parts = [
        "<header>",
        '<p class="eyebrow">urushi: a model built in rounds</p>',
        f"<h1>{escape(ledger.build)}</h1>",
        f'<p class="verdict">{sections.verdict(ledger)}</p>',
        '<p class="hint">The held-out loss says how wrong the model is about pictures that it was '
        "never trained on. Lower is better.</p>",
        sections.facts(ledger),
        "</header>",
        "<h2>What it draws</h2>",
        "<p>Every row is one prompt, drawn from the same starting noise in every column. Only the "
        "model differs: left is the one that you started from, then how it drew after each "
        "round.</p>",
        figures.samples(sheet),
        "<h2>Round by round</h2>",
        "<p>Each round trains a thin layer on top of what stands, chooses how strongly to lay it "
        "on, and bakes it in.</p>",
        figures.loss_figure(ledger),
        sections.rounds(ledger.rounds),
        figures.strength_figures(ledger),
        products(folder, ledger),
        sections.timing(ledger, counts),
    ]
    if recipe is not None:
        parts += [
            "<h2>The recipe</h2>",
            "<p>Everything that decided this build, with every default spelled out.</p>",
            f"<details><summary>Show recipe.toml</summary><pre>{escape(recipe)}</pre></details>",
        ]
    return page(f"{ledger.build}: urushi report", "\n".join(part for part in parts if part))
