"""The report's words and tables: verdict, rounds, files, where the time went."""

from collections.abc import Sequence
from html import escape

from pipeline.artefacts.ledger import Ledger, RoundRow
from pipeline.preview import wording
from pipeline.preview.counts import StageCount
from pipeline.preview.plots import standing_losses

LEGEND = (
    (
        "Held-out loss",
        "How wrong the model is about pictures kept out of training. Lower is better. Every "
        "comparison uses the same pictures and the same noise.",
    ),
    (
        "Learning rate, steps",
        "How large a step training takes at most, and how many it took. Later rounds go gentler.",
    ),
    (
        "Strength",
        "How much of the round was baked in: 1 is as trained, 0 is not at all.",
    ),
    (
        "Gain",
        "Held-out loss before minus after, and the range in which it lies with 95 % confidence. "
        "If the range stays above zero, the gain is no accident. For a round that was left out it "
        "is the range of what the round would have done.",
    ),
    (
        "Train loss",
        "The loss on the training pictures over the last tenth of the round. It is noisy, and not "
        "comparable with the held-out loss.",
    ),
    (
        "Rounded away",
        "The share of this round's change that is too fine for the number format of the model "
        "file. Later rounds lose nothing by it: each sum starts from the origin in full precision.",
    ),
)
DECISIONS = {
    "accepted": "accepted",
    "accepted on retry": "accepted on retry",
    "rejected": "rejected, left out",
    "always": "merged, no gate",
}


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


def facts(ledger: Ledger) -> str:
    """A row of labelled figures."""
    merged = sum(row.strength > 0 for row in ledger.rounds)
    seconds = sum(ledger.seconds.values()) + sum(row.seconds for row in ledger.rounds)
    shown = (
        ("Started from", _file_name(ledger.origin)),
        ("Rounds merged", f"{merged} of {len(ledger.rounds)}"),
        ("Held-out pictures", f"{ledger.heldout_pictures:,}"),
        ("Time", wording.duration(seconds)),
        ("Status", ledger.status),
    )
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in shown)
    return f'<dl class="facts">{items}</dl>'


def rounds(rows: Sequence[RoundRow]) -> str:
    """The table of rounds with its legend."""
    if not rows:
        return '<p class="hint">No round has finished yet.</p>'
    several = len({row.dataset for row in rows}) > 1
    heads = (
        "<th>Round</th>"
        + ("<th>Dataset</th>" if several else "")
        + '<th class="number">Learning<br>rate</th><th class="number">Steps</th>'
        '<th class="number">Strength</th><th class="number">Held-out loss<br>before → after</th>'
        '<th class="number">Gain<br>(95 % range)</th><th>Decision</th>'
        '<th class="number">Train<br>loss</th><th class="number">Rounded<br>away</th>'
        '<th class="number">Time</th>'
    )
    body = "".join(_round(row, several) for row in rows)
    legend = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in LEGEND)
    return (
        f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div>\n"
        "<details><summary>What the columns mean</summary>"
        f'<dl class="legend">{legend}</dl></details>'
    )


def _round(row: RoundRow, several: bool) -> str:
    # A round that was left out gained nothing; the range is of what it would have done.
    gain = wording.signed(row.heldout_before - row.heldout_after) if row.strength > 0 else "none"
    between = f"{wording.signed(row.improvement_low)} to {wording.signed(row.improvement_high)}"
    attempts = f'<span class="small">{row.attempts} attempts</span>' if row.attempts > 1 else ""
    cells = (
        f"<td>{escape(row.dataset)}</td>" if several else "",
        _number(wording.rate(row.learning_rate)),
        _number(f"{row.steps:,}"),
        _number(f"{row.strength:.2f}"),
        _number(f"{wording.loss(row.heldout_before)} → {wording.loss(row.heldout_after)}"),
        _number(f'{gain}<span class="small">{between}</span>'),
        f'<td><span class="decision {row.decision.split()[0]}">'
        f"{escape(DECISIONS[row.decision])}</span>{attempts}</td>",
        _number(wording.loss(row.train_loss)),
        _number(wording.share(row.cast_loss)),
        _number(wording.duration(row.seconds)),
    )
    kind = "" if row.strength > 0 else ' class="left-out"'
    return f'<tr{kind}><th scope="row">{row.round}</th>{"".join(cells)}</tr>\n'


def _number(html: str) -> str:
    return f'<td class="number">{html}</td>'


def timing(ledger: Ledger, counts: Sequence[StageCount]) -> str:
    """Seconds of every data stage and of every part of the rounds, longest time as the full bar."""
    # The ledger timed the run that made the build; receipts stand in for stages it does not name.
    names = dict.fromkeys([*ledger.seconds, *(count.stage for count in counts)])
    spent: list[tuple[str, float, str]] = []
    several = len({count.dataset for count in counts}) > 1
    for name in names:
        own = [count for count in counts if count.stage == name]
        seconds = ledger.seconds.get(name, sum(count.seconds for count in own))
        made = "; ".join((f"{c.dataset}: " if several else "") + c.made for c in own if c.made)
        spent.append((name, seconds, made))
    parts = dict.fromkeys(part for row in ledger.rounds for part in row.phases)
    for part in parts:
        seconds = sum(row.phases.get(part, 0.0) for row in ledger.rounds)
        spent.append((part, seconds, f"over {wording.count(len(ledger.rounds), 'round')}"))
    if not spent:
        return ""
    longest = max(seconds for _, seconds, _ in spent) or 1.0
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(made)}</td>'
        f'{_number(wording.duration(seconds))}<td class="meter">'
        f'<i style="width: {100 * seconds / longest:.1f}%"></i></td></tr>\n'
        for name, seconds, made in spent
    )
    return (
        f"<h2>Where the time went</h2>\n"
        f'<div class="card scroll"><table class="bare"><tbody>\n{body}</tbody></table></div>'
    )


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or path
