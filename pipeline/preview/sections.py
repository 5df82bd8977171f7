"""The report's tables: rounds, the pictures that were learned, credits, where the time went."""

from collections.abc import Sequence
from html import escape

from pipeline.artefacts.ledger import Ledger, RoundRow
from pipeline.preview import wording
from pipeline.preview.counts import StageCount
from pipeline.preview.data import Counts, DatasetFacts

LEGEND = (
    (
        "Held-out loss",
        "How wrong the model is about pictures kept out of training. Lower is better. Every "
        "comparison uses the same pictures and the same noise.",
    ),
    (
        "Learning rate, steps",
        "How large a step training takes at most, and how many it took.",
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
HEADS = (
    ("Learning rate", "Learning<br>rate"),
    ("Steps", "Steps"),
    ("Strength", "Strength"),
    ("Held-out loss", "Held-out loss<br>before → after"),
    ("Gain (95 % range)", "Gain<br>(95 % range)"),
    ("Decision", "Decision"),
    ("Train loss", "Train<br>loss"),
    ("Rounded away", "Rounded<br>away"),
    ("Time", "Time"),
)
MOST_SHOWN = 12
"""Rows of a list of bars."""


def rounds(rows: Sequence[RoundRow]) -> str:
    """The table of rounds with its legend."""
    if not rows:
        return '<p class="hint">No round has finished yet.</p>'
    several = len({row.dataset for row in rows}) > 1
    heads = "<th>Round</th>" + ("<th>Dataset</th>" if several else "")
    for name, shown in HEADS:
        heads += f"<th>{shown}</th>" if name == "Decision" else f'<th class="number">{shown}</th>'
    body = "".join(_round(row, several) for row in rows)
    legend = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in LEGEND)
    return (
        f'<div class="card"><table class="stack"><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div>\n"
        "<details><summary>What the columns mean</summary>"
        f'<dl class="legend">{legend}</dl></details>'
    )


def _round(row: RoundRow, several: bool) -> str:
    # A round that was left out gained nothing; the range is of what it would have done.
    gain = wording.signed(row.heldout_before - row.heldout_after) if row.strength > 0 else "none"
    between = f"{wording.signed(row.improvement_low)} to {wording.signed(row.improvement_high)}"
    attempts = f' <span class="small">{row.attempts} attempts</span>' if row.attempts > 1 else ""
    values = (
        wording.rate(row.learning_rate),
        f"{row.steps:,}",
        wording.strength(row.merged_at),
        f"{wording.loss(row.heldout_before)} → {wording.loss(row.heldout_after)}",
        f'<span>{gain} <span class="small">{between}</span></span>',
        f'<span><span class="decision {row.decision.split()[0]}">'
        f"{escape(DECISIONS[row.decision])}</span>{attempts}</span>",
        wording.loss(row.train_loss),
        wording.share(row.cast_loss),
        wording.duration(row.seconds),
    )
    cells = "".join(
        f'<td data-name="{name}" class="{"words" if name == "Decision" else "number"}">{value}</td>'
        for (name, _), value in zip(HEADS, values, strict=True)
    )
    dataset = f'<td data-name="Dataset">{escape(row.dataset)}</td>' if several else ""
    kind = "" if row.strength > 0 else ' class="left-out"'
    # On a phone a row is a card, and the number alone would not say what it counts.
    head = f'<th scope="row"><span class="word">Round </span>{row.round}</th>'
    return f"<tr{kind}>{head}{dataset}{cells}</tr>\n"


def learned(facts: Sequence[DatasetFacts]) -> str:
    """What each dataset was: numbers, tags, sizes."""
    return "\n".join(_dataset(one, len(facts) > 1) for one in facts)


def _dataset(facts: DatasetFacts, several: bool) -> str:
    fewest, middle, most = facts.lengths
    lines = [
        f"<b>{facts.pictures:,}</b> pictures of <code>{escape(facts.asked)}</code>, "
        f"from {_listed(facts.sites)}; rated {_listed(facts.ratings)}."
    ]
    if facts.tags:
        lines.append(
            f"{facts.different_tags:,} different tags; a caption has {fewest} to {most}, "
            f"in the middle {middle:g}."
        )
    if facts.excluded:
        lines.append(f"The recipe excludes {escape(', '.join(facts.excluded))}.")
    cards = [
        _bars("Tags in most captions", facts.tags[:MOST_SHOWN], facts.pictures),
        _bars("Sizes trained at", _sizes(facts.buckets), facts.pictures),
        _bars("Posts not taken", facts.left_out[:MOST_SHOWN], None),
    ]
    title = f"<h3>{escape(facts.name)}</h3>" if several else ""
    return f'{title}<p>{" ".join(lines)}</p>\n<div class="plots data">{"".join(cards)}</div>'


def _sizes(buckets: Counts) -> Counts:
    shown = tuple((name.replace("x", " × "), count) for name, count in buckets[:MOST_SHOWN])
    rest = buckets[MOST_SHOWN:]
    return (*shown, (f"{len(rest)} more sizes", sum(n for _, n in rest))) if rest else shown


def _bars(title: str, counts: Counts, whole: int | None) -> str:
    """A list of bars, the longest full; shares of `whole` where there is one."""
    if not counts:
        return ""
    longest = max(count for _, count in counts)
    rows = "".join(
        f'<li><span>{escape(name)}</span><i style="width: {100 * count / longest:.1f}%"></i>'
        f"<b>{wording.share(count / whole) if whole else f'{count:,}'}</b></li>\n"
        for name, count in counts
    )
    return f'<div class="card"><h3>{title}</h3><ul class="bars">\n{rows}</ul></div>'


def _listed(counts: Counts) -> str:
    if len(counts) == 1:
        return escape(counts[0][0])
    return ", ".join(f"{escape(name)} ({count:,})" for name, count in counts)


def credits(facts: Sequence[DatasetFacts]) -> str:
    """The artists by name, most pictures first; empty where no picture names one."""
    if not any(one.artists for one in facts):
        return ""
    parts = [
        "<p>These artists made the pictures that the model learned from. Their names never "
        "reach a caption. <code>urushi credits</code> lists every picture with its source.</p>"
    ]
    for one in facts:
        names = "".join(
            f'<li>{escape(name.replace("_", " "))} <span class="hint">{count:,}</span></li>'
            for name, count in one.artists
        )
        unnamed = f", and {one.unnamed:,} pictures that name none" if one.unnamed else ""
        parts.append(
            f"<details><summary>{wording.count(len(one.artists), 'artist')} of {escape(one.name)}"
            f'{unnamed}</summary><ul class="names">{names}</ul></details>'
        )
    return "\n".join(parts)


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
        f'<td class="number">{wording.duration(seconds)}</td><td class="meter">'
        f'<i style="width: {100 * seconds / longest:.1f}%"></i></td></tr>\n'
        for name, seconds, made in spent
    )
    return f'<div class="card"><table class="bare"><tbody>\n{body}</tbody></table></div>'
