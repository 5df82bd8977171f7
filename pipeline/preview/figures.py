"""The report's plots with what they mean."""

from pipeline.artefacts.ledger import Ledger
from pipeline.preview import plots
from pipeline.preview.columns import strength_note
from pipeline.preview.standing import anchors, levels, stands


def losses(ledger: Ledger) -> str:
    """What the rounds did to the losses; empty before round 1 is judged."""
    found = stands(ledger)
    if not found:
        return ""
    hollow = (
        " Hollow points: the round was left out, and what stood goes on."
        if any(stand.left_out for stand in found)
        else ""
    )
    cards = [
        _card(
            "Held-out loss",
            plots.loss_plot(found),
            "Lower is better. Upright bars: the 95 % range of what each round gained." + hollow,
        )
    ]
    if bands := levels(ledger):
        cards.append(
            _card(
                "Change by noise level, %",
                plots.levels_plot(bands),
                "From the origin to the end, by the timestep from which a band begins. Below zero "
                "is better. A mean can hide that detail was learned at the cost of composition.",
            )
        )
    if points := anchors(ledger):
        cards.append(
            _card(
                "What it should not forget",
                plots.lines_plot(
                    [name for name, _ in points],
                    [plots.Line([loss for _, loss in points], "second")],
                    "Anchor loss",
                ),
                "The loss on the anchor pictures, which are not of what is taught. Some rise is "
                "normal; a steep one is forgetting.",
            )
        )
    return f'<div class="pair">{"".join(cards)}</div>'


def strengths(ledger: Ledger) -> str:
    """One small plot per round whose strength was searched."""
    rows = plots.searched(ledger.rounds)
    if not rows:
        return ""
    cards = "".join(
        f'<figure class="card"><h3>Round {row.round}: {strength_note(row)}</h3>'
        f"{plots.strength_plot(row)}</figure>\n"
        for row in rows
    )
    fitted = (
        " At the end all strengths were fitted together; the second, golden line is what each "
        "became."
        if any(row.final_strength != row.strength for row in rows)
        else ""
    )
    return (
        '<h2 id="strengths">How strong each round was laid on</h2>\n'
        "<p>After training, a round is tried at several strengths on one half of the held-out "
        "pictures: 0 is without it, 1 is just as trained. The lowest point is taken (red), and "
        "the other half, which had no say in the choice, judges the result. Scales differ from "
        f"round to round.{fitted}</p>\n"
        f'<div class="plots">{cards}</div>'
    )


def _card(title: str, plot: str, text: str) -> str:
    return f'<figure class="card"><h3>{title}</h3>{plot}<figcaption>{text}</figcaption></figure>\n'
