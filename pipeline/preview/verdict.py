"""The ledger into the report's first words: did the rounds help, by how much, and why no more."""

from html import escape

from pipeline.artefacts.ledger import Gain, Ledger, RoundRow
from pipeline.preview import wording
from pipeline.preview.plots import searched
from pipeline.preview.standing import anchors, fitted, levels, stands

WORSE = 0.02
"""A band of noise levels whose loss rose by more than this share is worth a word."""


def verdict(ledger: Ledger) -> str:
    """One sentence, HTML: what came of it."""
    found = stands(ledger)
    if not found:
        return "No round has finished yet: this is the model before training."
    before, after = found[0].loss, found[-1].loss
    merged = sum(row.strength > 0 for row in ledger.rounds)
    gain = (before - after) / before if before > 0 else 0.0
    if merged == 0:
        text = "No round helped, and none was merged: the result equals the origin."
    elif after < before:
        text = (
            f"{wording.count(merged, 'round')} of training took the held-out loss "
            f"from {wording.loss(before)} to <b>{wording.loss(after)}</b>: "
            f"<b>{wording.share(gain)} lower</b>{_range(ledger.gain, 1)}."
        )
    else:
        text = (
            f"{wording.count(merged, 'round')} of training did not help: the held-out loss went "
            f"from {wording.loss(before)} to <b>{wording.loss(after)}</b>, "
            f"{wording.share(-gain)} higher{_range(ledger.gain, -1)}."
        )
    if ledger.status == "running":
        text += " The build is not finished."
    elif ledger.status == "stopped by the gate" and ledger.stopped is None:
        text += " The gate stopped the build early, because rounds no longer helped."
    return text


def _range(gain: Gain | None, sign: int) -> str:
    """How far chance may have moved the gain (times `sign`), as a share of the origin's loss."""
    if gain is None or gain.before <= 0:
        return ""
    ends = sorted(sign * end / gain.before for end in (gain.low, gain.high))
    low, high = (wording.share(end).replace("-", "\N{MINUS SIGN}") for end in ends)
    chance = ", which may be chance" if gain.low <= 0 <= gain.high else ""
    return f" (95 % range {low} to {high}{chance})"


def reasons(ledger: Ledger) -> str:
    """What stands behind the verdict, a line each, HTML; empty before round 1 is judged."""
    if not ledger.rounds:
        return ""
    lines = (
        _sure(ledger.rounds),
        _strengths(ledger.rounds),
        _fitted(ledger),
        _single(ledger),
        _stopped(ledger),
        _trials(ledger),
        _levels(ledger),
        _anchor(ledger),
    )
    return '<ul class="reasons">' + "".join(f"<li>{line}</li>" for line in lines if line) + "</ul>"


def _sure(rows: tuple[RoundRow, ...]) -> str:
    laid = [row for row in rows if row.strength > 0]
    if not laid:
        return ""
    unsure = [str(row.round) for row in laid if row.improvement_low <= 0]
    if not unsure:
        which = "Every merged round" if len(laid) > 1 else "The round"
        return f"{which} gained more than chance explains (95 % range of its gain above zero)."
    rounds = "round" if len(unsure) == 1 else "rounds"
    return f"The gain of {rounds} {', '.join(unsure)} may be chance: its 95 % range touches zero."


def _strengths(rows: tuple[RoundRow, ...]) -> str:
    shown = ", ".join(wording.strength(r.merged_at) if r.strength > 0 else "left out" for r in rows)
    how = "chosen on held-out pictures" if searched(rows) else "as the recipe says"
    return f"Strengths {how}: <b>{shown}</b>."


def _fitted(ledger: Ledger) -> str:
    refit = ledger.refit
    if refit is None:
        return ""
    low, high = wording.signed(refit.low), wording.signed(refit.high)
    if fitted(ledger) is None:
        return (
            "Fitting all strengths together afterwards promised no gain on the judging pictures "
            f"({low} to {high}), so they stayed."
        )
    shown = ", ".join(map(wording.strength, refit.final))
    return (
        f"Fitted all together at the end they are <b>{shown}</b>, which lowered the loss by "
        f"{wording.loss(refit.before - refit.after)} more (95 % range {low} to {high})."
    )


def _single(ledger: Ledger) -> str:
    """What one plain LoRA of as many steps does, in every case and first of all where it wins."""
    baseline = ledger.baseline
    if baseline is None:
        return ""
    one = baseline.single
    if baseline.low > 0:
        said = "so the rounds are better than the best of these"
    elif baseline.high < 0:
        said = "so <b>the plain LoRA is better</b>: rounds were not needed here"
    else:
        said = "which the rounds equal within noise"
    return (
        f"A single LoRA of as many steps reaches {wording.loss(one.last)} as it ends, "
        f"{wording.loss(one.early_stopped)} stopped early and {wording.loss(one.refitted)} with "
        f"its checkpoints refitted; the rounds reach {wording.loss(baseline.rounds)}, {said} "
        f"(95 % range of the difference {wording.signed(baseline.low)} to "
        f"{wording.signed(baseline.high)})."
    )


def _stopped(ledger: Ledger) -> str:
    return f"The build ended early: {escape(ledger.stopped)}." if ledger.stopped else ""


def _trials(ledger: Ledger) -> str:
    if not ledger.trials:
        return ""
    best = min(ledger.trials, key=lambda trial: trial.loss)
    tried = ", ".join(wording.rate(trial.learning_rate) for trial in ledger.trials)
    return f"The learning rate {wording.rate(best.learning_rate)} won in short trials of {tried}."


def _levels(ledger: Ledger) -> str:
    worse = [one for one in levels(ledger) if one.change > WORSE]
    if not worse:
        return ""
    where = ", ".join(f"{one.first} to {one.last}" for one in worse)
    return f"At timesteps {where} the loss rose: look at what became of composition and detail."


def _anchor(ledger: Ledger) -> str:
    points = anchors(ledger)
    if not points or points[0][1] <= 0:
        return ""
    rose = points[-1][1] / points[0][1] - 1
    word = "rose" if rose >= 0 else "fell"
    return f"The loss on what it should not forget {word} by {wording.share(abs(rose))}."


def tiles(ledger: Ledger) -> str:
    """The figures that matter most, labelled."""
    found = stands(ledger)
    merged = sum(row.strength > 0 for row in ledger.rounds)
    seconds = sum(ledger.seconds.values()) + sum(row.seconds for row in ledger.rounds)
    loss = f"{wording.loss(found[0].loss)} → {wording.loss(found[-1].loss)}" if found else "unknown"
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
