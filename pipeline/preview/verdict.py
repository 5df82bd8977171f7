"""The ledger into the report's first words: did the rounds help, by how much, and why no more."""

from html import escape

from pipeline.artefacts.ledger import Ledger, RoundRow
from pipeline.preview import wording
from pipeline.preview.plots import searched, standing_losses


def verdict(ledger: Ledger) -> str:
    """One sentence, HTML: what came of it."""
    points = standing_losses(ledger)
    if not points:
        return "No round has finished yet: this is the model before training."
    before, after = points[0][1], points[-1][1]
    merged = sum(row.strength > 0 for row in ledger.rounds)
    gain = (before - after) / before if before > 0 else 0.0
    if merged == 0:
        text = "No round helped, and none was merged: the result equals the origin."
    elif after < before:
        text = (
            f"{wording.count(merged, 'round')} of training took the held-out loss "
            f"from {wording.loss(before)} to <b>{wording.loss(after)}</b>: "
            f"<b>{wording.share(gain)} lower</b>."
        )
    else:
        text = (
            f"{wording.count(merged, 'round')} of training did not help: the held-out loss went "
            f"from {wording.loss(before)} to <b>{wording.loss(after)}</b>, "
            f"{wording.share(-gain)} higher."
        )
    if ledger.status == "running":
        text += " The build is not finished."
    elif ledger.status == "stopped by the gate":
        text += " The gate stopped the build early, because rounds no longer helped."
    return text


def reasons(ledger: Ledger) -> str:
    """What stands behind the verdict, a line each, HTML; empty before round 1 is judged."""
    if not ledger.rounds:
        return ""
    lines = [_sure(ledger.rounds), _strengths(ledger.rounds)]
    return '<ul class="reasons">' + "".join(f"<li>{line}</li>" for line in lines if line) + "</ul>"


def _sure(rows: tuple[RoundRow, ...]) -> str:
    laid = [row for row in rows if row.strength > 0]
    if not laid:
        return ""
    sure = [row.round for row in laid if row.improvement_low > 0]
    if len(sure) == len(laid):
        which = "Every merged round" if len(laid) > 1 else "The round"
        return f"{which} gained more than chance explains (95 % range of its gain above zero)."
    open_ = [str(row.round) for row in laid if row.improvement_low <= 0]
    rounds = "round" if len(open_) == 1 else "rounds"
    return f"The gain of {rounds} {', '.join(open_)} may be chance: its 95 % range touches zero."


def _strengths(rows: tuple[RoundRow, ...]) -> str:
    shown = ", ".join(f"{r.strength:.2f}" if r.strength > 0 else "left out" for r in rows)
    how = "chosen on held-out pictures" if searched(rows) else "as the recipe says"
    return f"Strengths {how}: <b>{shown}</b>."


def tiles(ledger: Ledger) -> str:
    """The figures that matter most, labelled."""
    points = standing_losses(ledger)
    merged = sum(row.strength > 0 for row in ledger.rounds)
    seconds = sum(ledger.seconds.values()) + sum(row.seconds for row in ledger.rounds)
    loss = f"{wording.loss(points[0][1])} → {wording.loss(points[-1][1])}" if points else "unknown"
    shown = (
        ("Held-out loss", loss),
        ("Rounds merged", f"{merged} of {len(ledger.rounds)}"),
        ("Judged on", wording.count(ledger.heldout_pictures, "held-out picture")),
        ("Time", wording.duration(seconds)),
        ("Started from", file_name(ledger.origin).removesuffix(".safetensors")),
        ("Status", ledger.status),
    )
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in shown)
    return f'<dl class="tiles">{items}</dl>'


def file_name(path: str) -> str:
    """The last part of a path of any system."""
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or path
