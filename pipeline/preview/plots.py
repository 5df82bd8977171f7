"""The ledger's curves as inline SVG, drawn by matplotlib in colours that the page decides."""

import io
import re
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.artefacts.ledger import Ledger, RoundRow
from pipeline.preview import wording

# Stand-ins that no other colour equals; in the finished SVG each becomes a variable of the page's
# style sheet, and so the same drawing serves the light and the dark scheme.
VARIABLES = {
    "ink": "#010a01",
    "muted": "#010a02",
    "line": "#010a03",
    "accent": "#010a04",
    "gold": "#010a05",
    "card": "#010a06",
}


def standing_losses(ledger: Ledger) -> list[tuple[int, float]]:
    """(round, held-out loss of what stands after it), from the origin, 0. Empty before round 1."""
    rows = ledger.rounds
    if not rows:
        return []
    origin = ledger.heldout_origin
    points = [(0, rows[0].heldout_before if origin is None else origin)]
    points += [(r.round, r.heldout_after if r.strength > 0 else r.heldout_before) for r in rows]
    return points


def loss_plot(ledger: Ledger) -> str:
    """Held-out loss of the origin and after every round."""
    points = standing_losses(ledger)
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    _dress(axes)
    numbers, losses = [n for n, _ in points], [value for _, value in points]
    axes.plot(numbers, losses, color=VARIABLES["accent"], linewidth=2, zorder=3)
    left_out = {row.round for row in ledger.rounds if row.strength == 0}
    for number, value in points:
        hollow = number in left_out
        axes.plot(
            [number],
            [value],
            marker="o",
            markersize=7,
            color=VARIABLES["card" if hollow else "accent"],
            markeredgecolor=VARIABLES["accent"],
            markeredgewidth=1.5,
            zorder=4,
        )
        if len(points) <= 12 or number in (0, numbers[-1]):
            axes.annotate(
                wording.loss(value),
                (number, value),
                # To the right, clear of a line that falls towards the point.
                xytext=(4, 8),
                textcoords="offset points",
                ha="left",
                color=VARIABLES["ink"],
                fontsize=9.5,
            )
    axes.margins(x=0.09, y=0.2)
    axes.set_ylabel("held-out loss", color=VARIABLES["muted"], fontsize=9.5)
    if len(points) <= 12:
        axes.set_xticks(numbers, ["origin", *(f"round {n}" for n in numbers[1:])])
    else:
        axes.set_xlabel("round (0 is the origin)", color=VARIABLES["muted"], fontsize=9.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label = "Held-out loss by round: " + ", ".join(wording.loss(value) for value in losses)
    return _svg(figure, "loss", label, "plot wide")


def strength_plot(row: RoundRow) -> str:
    """Loss at each strength that round `row` tried, on the held-out half used for choosing."""
    figure = Figure(figsize=(2.6, 1.75), layout="constrained")
    axes = figure.add_subplot()
    _dress(axes)
    tried = sorted(row.candidates, key=lambda candidate: candidate.strength)
    strengths, losses = [c.strength for c in tried], [c.loss for c in tried]
    axes.plot(strengths, losses, color=VARIABLES["gold"], linewidth=1.5, zorder=3)
    axes.plot(strengths, losses, "o", color=VARIABLES["gold"], markersize=5, zorder=4)
    chosen = [c for c in tried if abs(c.strength - row.strength) < 1e-9]
    for candidate in chosen:
        axes.plot(
            [candidate.strength],
            [candidate.loss],
            "o",
            color=VARIABLES["accent"],
            markersize=9,
            zorder=5,
        )
    axes.axvline(row.strength, color=VARIABLES["accent"], linewidth=1, linestyle=(0, (3, 3)))
    axes.margins(x=0.08, y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.set_xlabel("strength", color=VARIABLES["muted"], fontsize=9.5)
    label = f"Round {row.round}, loss by strength: " + ", ".join(
        f"{c.strength:.2f}: {wording.loss(c.loss)}" for c in tried
    )
    return _svg(figure, f"strength-{row.round}", label)


def _dress(axes: Axes) -> None:
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(VARIABLES["line"])
    axes.grid(axis="y", color=VARIABLES["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=VARIABLES["muted"], labelsize=9.5, length=0, pad=5)
    axes.ticklabel_format(axis="y", useOffset=False)


def _svg(figure: Figure, name: str, label: str, kind: str = "plot") -> str:
    """`figure` as an <svg> element that scales; the same figure gives the same text."""
    figure.patch.set_visible(False)
    out = io.StringIO()
    nothing: dict[str, str | None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": f"urushi-{name}", "svg.id": None}
    ):
        FigureCanvasSVG(figure).print_svg(out, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    # Several drawings share one page: no ids that could meet, no style rules that reach beyond.
    for pattern, instead in (
        (r"<!--.*?-->\s*", ""),
        (r"<style.*?</style>\s*", ""),
        (r'<g id="[^"]*"/>\s*', ""),
        (r'<g id="[^"]*">', "<g>"),
        (r"font-family: [^;\"]*; ", ""),
        (r"xlink:href=", "href="),
    ):
        text = re.sub(pattern, instead, text, flags=re.DOTALL)
    for variable, colour in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg class="{kind}" role="img" aria-label="{label}" {box[0] if box else ""}>'
    return re.sub(r"<svg[^>]*>", opening, text, count=1)


def searched(rows: Sequence[RoundRow]) -> list[RoundRow]:
    """The rounds whose strength was searched, not given."""
    return [row for row in rows if len(row.candidates) > 1]
