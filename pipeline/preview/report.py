"""The ledger, the samples and the recipe into report.html: one file that opens without network.

    urushi report BUILD

The same build gives the same bytes.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from pipeline.artefacts.files import write_text
from pipeline.artefacts.ledger import Ledger
from pipeline.artefacts.workspace import BuildFolder
from pipeline.preview import figures, sections
from pipeline.preview.columns import Sheet, read_sheet, with_final
from pipeline.preview.counts import StageCount
from pipeline.preview.data import DatasetFacts
from pipeline.preview.page import page
from pipeline.preview.products import products
from pipeline.preview.slider import pictures
from pipeline.preview.verdict import reasons, tiles, verdict
from pipeline.preview.weights import read_growths, weights


def write_report(
    folder: BuildFolder,
    ledger: Ledger,
    counts: Sequence[StageCount] = (),
    facts: Sequence[DatasetFacts] = (),
) -> Path:
    """Writes the build's report.html, unless it is there with this content; returns its path.

    Args:
        counts: what the data stages made, which the ledger does not know.
        facts: what the pictures were.

    Raises:
        DiskFullError, RequestError: it cannot be written.
    """
    last = max((row.round for row in ledger.rounds), default=0)
    sheet = with_final(read_sheet(folder, ledger.rounds, last), folder, ledger)
    recipe = folder.recipe.read_text(encoding="utf-8") if folder.recipe.is_file() else None
    text = render(folder, ledger, sheet, recipe, counts, facts)
    if not folder.report.is_file() or folder.report.read_bytes() != text.encode():
        write_text(folder.report, text)
    return folder.report


def render(
    folder: BuildFolder,
    ledger: Ledger,
    sheet: Sheet,
    recipe: str | None,
    counts: Sequence[StageCount],
    facts: Sequence[DatasetFacts],
) -> str:
    """The whole page."""
    chapters = [
        _chapter(
            "drawn",
            "What it draws",
            "Each prompt starts from the same noise in every column; only the model differs.",
            pictures(sheet),
        ),
        _chapter(
            "rounds",
            "Round by round",
            "Each round trains a thin layer on top of what stands, chooses how strongly to lay it "
            "on, and bakes it in.",
            figures.losses(ledger) + sections.rounds(ledger.rounds),
        ),
        figures.strengths(ledger),
        _chapter(
            "weights",
            "What it did to the weights",
            "How far the rounds went from the origin, and in how many directions.",
            weights(ledger, read_growths(folder, ledger)),
        ),
        _chapter("learned", "What it learned from", "", sections.learned(facts)),
        _chapter("files", "Your files", "", products(folder, ledger)),
        _chapter("time", "Where the time went", "", sections.timing(ledger, counts)),
        _chapter("credits", "Credits", "", sections.credits(facts)),
        _chapter(
            "recipe",
            "The recipe",
            "Everything that decided this build, with every default spelled out.",
            "" if recipe is None else _folded("Show recipe.toml", f"<pre>{escape(recipe)}</pre>"),
        ),
    ]
    head = (
        '<header><div class="wrap"><p class="eyebrow">urushi: a model built in rounds</p>\n'
        f"<h1>{escape(ledger.build)}</h1>\n"
        f'<p class="verdict">{verdict(ledger)}</p>\n{reasons(ledger)}\n{tiles(ledger)}\n'
        "</div></header>\n"
    )
    body = "\n".join(chapter for chapter in chapters if chapter)
    whole = f'{head}{_contents(body)}\n<main class="wrap">\n{body}\n</main>'
    return page(f"{ledger.build}: urushi report", whole)


def _chapter(name: str, title: str, text: str, content: str) -> str:
    """A heading and what follows; nothing where there is no content."""
    if not content:
        return ""
    lead = f"<p>{text}</p>\n" if text else ""
    return f'<h2 id="{name}">{title}</h2>\n{lead}{content}'


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def _contents(body: str) -> str:
    """Links to the chapters that there are."""
    named = (
        ("drawn", "Pictures"),
        ("rounds", "Rounds"),
        ("strengths", "Strengths"),
        ("weights", "Weights"),
        ("learned", "Data"),
        ("files", "Files"),
        ("time", "Time"),
        ("credits", "Credits"),
        ("recipe", "Recipe"),
    )
    links = "".join(
        f'<li><a href="#{name}">{title}</a></li>' for name, title in named if f'id="{name}"' in body
    )
    return f'<nav aria-label="chapters"><div class="wrap"><ul>{links}</ul></div></nav>'
