"""The ledger's curves as inline SVG: held-out loss over the rounds, and loss over strength."""

from collections.abc import Sequence

import numpy as np

from pipeline.artefacts.ledger import Candidate, Ledger, RoundRow
from pipeline.preview import wording
from pipeline.preview.svg import (
    Scale,
    decimals,
    dot,
    level,
    padded,
    path,
    svg,
    upright,
    words,
)

WIDE, HIGH = 460, 260
"""Of a figure, in its own pixels: letters of 12 stay legible on a phone of 360."""
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 18, 32
FEW = 8
"""Rounds; of more, every other is named."""


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
    """Held-out loss of the origin and after every round, with the 95 % range of each round's gain.

    The range of a round that was left out is of what it would have been.
    """
    points = standing_losses(ledger)
    ranges = {
        row.round: (
            row.heldout_before - row.improvement_high,
            row.heldout_before - row.improvement_low,
        )
        for row in ledger.rounds
    }
    ends = [end for pair in ranges.values() for end in pair]
    y = padded([*(loss for _, loss in points), *ends], HIGH - BOTTOM, TOP)
    x = Scale(0, len(points) - 1, LEFT + 20, WIDE - RIGHT - 20)
    parts = [grid(y, LEFT, WIDE - RIGHT)]
    left_out = {row.round for row in ledger.rounds if row.strength == 0}
    parts.append(path([(x(n), y(loss)) for n, (_, loss) in enumerate(points)], "line"))
    every = 1 + (len(points) - 1) // FEW
    for place, (number, loss) in enumerate(points):
        at = x(place)
        if number in ranges:
            low, high = ranges[number]
            kind = "faint" if number in left_out else "whisker"
            parts.append(upright(at, y(high), y(low), kind))
            parts += [level(y(end), at - 4, at + 4, kind) for end in (low, high)]
        parts.append(dot(at, y(loss), "hollow" if number in left_out else "point"))
        if place % every == 0 or place == len(points) - 1:
            parts.append(words(at, HIGH - 10, f"round {number}" if number else "origin"))
    label = "Held-out loss by round: " + ", ".join(wording.loss(loss) for _, loss in points)
    return svg(WIDE, HIGH, label, parts)


def strength_plot(row: RoundRow) -> str:
    """Loss at each strength that round `row` tried, on the choosing half, and their parabola."""
    wide, high = 240, 170
    tried = sorted(row.candidates, key=lambda candidate: candidate.strength)
    reach = [0.0, 1.0, row.strength, *(c.strength for c in tried)]
    x = Scale(min(reach), max(reach), 50, wide - 14)
    curve = parabola(tried)
    y = padded([c.loss for c in tried] + [loss for _, loss in curve], high - 34, 12)
    parts = [grid(y, 50, wide - 10, 3)]
    parts.append(upright(x(row.strength), 8, high - 34, "chosen"))
    parts.append(path([(x(s), y(loss)) for s, loss in curve], "curve"))
    for candidate in tried:
        mine = abs(candidate.strength - row.strength) < 1e-9
        kind, radius = ("point", 5.5) if mine else ("mark", 4)
        parts.append(dot(x(candidate.strength), y(candidate.loss), kind, radius))
    parts += [words(x(tick), high - 16, f"{tick:g}") for tick in x.ticks(2)]
    parts.append(words((50 + wide - 14) / 2, high - 4, "strength", "axis"))
    label = f"Round {row.round}, loss by strength: " + ", ".join(
        f"{c.strength:.2f}: {wording.loss(c.loss)}" for c in tried
    )
    return svg(wide, high, label, parts)


def parabola(tried: Sequence[Candidate]) -> list[tuple[float, float]]:
    """(strength, loss) along the parabola nearest to what was tried; straight lines under three."""
    strengths = [candidate.strength for candidate in tried]
    losses = [candidate.loss for candidate in tried]
    if len(set(strengths)) < 3:
        return list(zip(strengths, losses, strict=True))
    fitted = np.polynomial.Polynomial.fit(strengths, losses, 2)
    along = np.linspace(min(strengths), max(strengths), 41)
    return [(float(s), float(fitted(s))) for s in along]


def searched(rows: Sequence[RoundRow]) -> list[RoundRow]:
    """The rounds whose strength was searched, not given."""
    return [row for row in rows if len(row.candidates) > 2]


def grid(y: Scale, left: float, right: float, count: int = 4) -> str:
    """Level lines with their values."""
    ticks = y.ticks(count)
    places = decimals(ticks)
    return "".join(
        level(y(tick), left, right)
        + words(left - 8, y(tick) + 4, f"{tick:.{places}f}", "label", "end")
        for tick in ticks
    )
