"""What the rounds did to the weights: drift, rank, and which blocks moved, as plots and a table."""

import math
import re
from collections.abc import Mapping
from html import escape

from pipeline.artefacts.ledger import GrowthFile, Ledger
from pipeline.artefacts.workspace import BuildFolder
from pipeline.preview import wording
from pipeline.preview.plots import Line, lines_plot

BLOCK = re.compile(r"lora_unet_(down|up|input|output)_blocks_(\d+)")
SHORT = {"down": "down", "up": "up", "input": "in", "output": "out"}
ORDER = ("text", "in", "down", "middle", "up", "out")
"""In which data flows through the model."""

Growths = Mapping[int, GrowthFile]
"""By round; of the merged ones whose growth.json is there."""


def read_growths(folder: BuildFolder, ledger: Ledger) -> dict[int, GrowthFile]:
    """The growth.json of every merged round that has one that can be read."""
    found = {}
    for row in ledger.rounds:
        path = folder.round(row.round).growth
        if row.strength > 0 and path.is_file():
            found[row.round] = GrowthFile.model_validate_json(path.read_bytes())
    return found


def weights(ledger: Ledger, growths: Growths) -> str:
    """The chapter; empty before a round is merged."""
    rows = [row for row in ledger.rounds if row.strength > 0]
    if not rows:
        return ""
    names = [f"round {row.round}" for row in rows]
    ceilings, ceiling = [], 0
    for row in rows:
        ceiling += row.rank
        ceilings.append(float(ceiling))
    drift = lines_plot(
        names, [Line([100 * row.drift for row in rows], "line")], "Drift in per cent"
    )
    rank = lines_plot(
        names,
        [
            Line(ceilings, "third", "the most there could be"),
            Line([row.effective_rank for row in rows], "second", "effective rank"),
        ],
        "Effective rank of all rounds together",
    )
    last = rows[-1]
    return (
        '<div class="pair"><figure class="card"><h3>Drift from the origin, %</h3>'
        f"{drift}<figcaption>The size of all changes together, as a share of the weights that they "
        "change. Flat: later rounds add little, or take back.</figcaption></figure>\n"
        f'<figure class="card"><h3>Rank of all rounds together</h3>{rank}'
        '<figcaption><span class="key gold">effective rank</span>'
        '<span class="key good">ranks of all rounds added up</span>'
        "How many directions the change really uses, in the middle layer. Rising with the rounds: "
        "each found new ones.</figcaption></figure></div>\n"
        f"{_heat(growths)}{_directions(ledger)}"
        f'<p class="hint">After round {last.round}, {last.intruders:,} of the leading directions '
        "looked at are new ones that the origin hardly had. Many new ones and a rising anchor loss "
        "mean forgetting.</p>"
    )


def _directions(ledger: Ledger) -> str:
    """How each round lies to the earlier ones."""
    rows = [row for row in ledger.rounds if row.strength > 0 and row.cosines]
    if not rows:
        return ""
    numbers = sorted({number for row in rows for number in row.cosines})
    heads = "".join(f'<th class="number">round {number}</th>' for number in numbers)
    body = "".join(
        f'<tr><th scope="row">Round {row.round}</th>'
        + "".join(
            f'<td class="number">{wording.cosine(row.cosines.get(number))}</td>'
            for number in numbers
        )
        + "</tr>\n"
        for row in rows
    )
    return (
        "<details><summary>How each round lies to the earlier ones</summary>\n"
        "<p>The cosine of two rounds' changes: near 0 they went different ways, towards 1 the "
        "later went on where the earlier had stopped, below 0 it took back.</p>\n"
        f'<div class="card"><table class="heat"><thead><tr><td></td>{heads}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div></details>\n"
    )


def _heat(growths: Growths) -> str:
    """Blocks down, rounds across, and all together at the end; the darkest moved most."""
    if not growths:
        return ""
    per_round = {number: _by_block(grown, "relative") for number, grown in growths.items()}
    together = _by_block(growths[max(growths)], "total")
    blocks = sorted(together, key=_place)
    most = max((v for column in per_round.values() for v in column.values()), default=0.0)
    whole = max(together.values(), default=0.0)
    heads = "".join(f"<th>round {number}</th>" for number in per_round) + "<th>together</th>"
    body = "".join(
        f'<tr><th scope="row">{escape(block)}</th>'
        + "".join(_shade(column.get(block, 0.0), most) for column in per_round.values())
        + _shade(together[block], whole)
        + "</tr>\n"
        for block in blocks
    )
    return (
        "<h3>Which blocks moved</h3>\n"
        '<div class="card"><table class="heat"><thead><tr><td></td>'
        f"{heads}</tr></thead><tbody>\n{body}</tbody></table></div>\n"
        '<p class="hint">The change of each block\'s weights as a share of them (root mean square '
        "over its layers). Down blocks see first, up blocks draw last.</p>\n"
    )


def _shade(value: float, most: float) -> str:
    share = 75 * value / most if most else 0.0
    return (
        f'<td><i style="background: color-mix(in srgb, var(--accent) {share:.0f}%, transparent)">'
        f"{wording.share(value)}</i></td>"
    )


def _by_block(grown: GrowthFile, field: str) -> dict[str, float]:
    """Root mean square over each block's layers."""
    squares: dict[str, list[float]] = {}
    for layer in grown.layers:
        squares.setdefault(block_of(layer.module), []).append(getattr(layer, field) ** 2)
    return {block: math.sqrt(sum(some) / len(some)) for block, some in squares.items()}


def block_of(module: str) -> str:
    """A kohya name's block: "down 1", "middle", "up 0", "text 1", or "other"."""
    if found := BLOCK.match(module):
        return f"{SHORT[found[1]]} {found[2]}"
    if module.startswith("lora_unet_mid"):
        return "middle"
    if module.startswith("lora_te"):
        return f"text {module[7]}" if module[7:8].isdigit() else "text"
    return "other"


def _place(block: str) -> tuple[int, int]:
    name, _, number = block.partition(" ")
    return (ORDER.index(name) if name in ORDER else len(ORDER), int(number or 0))
