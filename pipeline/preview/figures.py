"""The report's plots with what they mean."""

from pipeline.artefacts.ledger import Ledger
from pipeline.preview import plots
from pipeline.preview.columns import strength_note


def losses(ledger: Ledger) -> str:
    """What the rounds did to the held-out loss; empty before round 1 is judged."""
    if not ledger.rounds:
        return ""
    left_out = any(row.strength == 0 for row in ledger.rounds)
    hollow = " Hollow points: the round was left out, and what stood goes on." if left_out else ""
    return (
        '<div class="pair"><figure class="card"><h3>Held-out loss</h3>'
        f"{plots.loss_plot(ledger)}"
        "<figcaption>Lower is better. Upright bars: the 95 % range of what each round gained."
        f"{hollow}</figcaption></figure></div>"
    )


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
    return (
        '<h2 id="strengths">How strong each round was laid on</h2>\n'
        "<p>After training, a round is tried at several strengths on one half of the held-out "
        "pictures: 0 is without it, 1 is just as trained. The lowest point is taken (red), and "
        "the other half, which had no say in the choice, judges the result. Scales differ from "
        "round to round.</p>\n"
        f'<div class="plots">{cards}</div>'
    )
