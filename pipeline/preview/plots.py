"""The ledger's curves as inline SVG: losses over the rounds, over noise levels, over strength."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.artefacts.ledger import Candidate, RoundRow
from pipeline.preview import wording
from pipeline.preview.standing import Level, Stand
from pipeline.preview.svg import (
    Scale,
    box,
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
FEW = 7
"""Names under a plot; of more, every other is left out."""


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    values: Sequence[float]
    kind: str
    """Its class in the style sheet: line, second, third."""
    name: str = ""


def loss_plot(stands: Sequence[Stand]) -> str:
    """Held-out loss of the origin and of what stood after every round, with 95 % ranges."""
    ends = [end for s in stands for end in (s.low, s.high) if end is not None]
    y = padded([*(s.loss for s in stands), *ends], HIGH - BOTTOM, TOP)
    x = across(len(stands))
    parts = [grid(y, LEFT, WIDE - RIGHT), named([s.name for s in stands], x)]
    parts.append(path([(x(n), y(s.loss)) for n, s in enumerate(stands)], "line"))
    for place, stand in enumerate(stands):
        at = x(place)
        if stand.low is not None and stand.high is not None:
            kind = "faint" if stand.left_out else "whisker"
            parts.append(upright(at, y(stand.high), y(stand.low), kind))
            parts += [level(y(end), at - 4, at + 4, kind) for end in (stand.low, stand.high)]
        parts.append(dot(at, y(stand.loss), "hollow" if stand.left_out else "point"))
    label = "Held-out loss: " + ", ".join(f"{s.name} {wording.loss(s.loss)}" for s in stands)
    return svg(WIDE, HIGH, label, parts)


def lines_plot(names: Sequence[str], lines: Sequence[Line], label: str) -> str:
    """One value per name and line, from zero up where zero is near."""
    values = [value for line in lines for value in line.values]
    y = padded(values, HIGH - BOTTOM, TOP)
    if min(values) >= 0 and min(values) < 0.5 * max(values):
        y = Scale(0.0, y.high, y.start, y.end)
    x = across(len(names))
    parts = [grid(y, LEFT, WIDE - RIGHT), named(names, x)]
    for line in lines:
        points = [(x(n), y(value)) for n, value in enumerate(line.values)]
        parts.append(path(points, line.kind))
        if line.kind != "third":
            mark = "point" if line.kind == "line" else "mark"
            parts += [dot(*point, mark) for point in points]
    told = "; ".join(
        f"{line.name or label}: {', '.join(f'{value:.4g}' for value in line.values)}"
        for line in lines
    )
    return svg(WIDE, HIGH, f"{label}. {told}", parts)


def levels_plot(levels: Sequence[Level]) -> str:
    """A bar a band of timesteps: how far the loss there fell or rose, per cent."""
    changes = [100 * one.change for one in levels]
    room = 0.14 * (max(*changes, 0.0) - min(*changes, 0.0) or 1.0)
    y = Scale(min(*changes, 0.0) - room, max(*changes, 0.0) + room, HIGH - 46, TOP)
    left, right = LEFT - 8, WIDE - RIGHT
    pitch = (right - left) / len(levels)
    parts = [grid(y, left, right), level(y(0), left, right, "zero")]
    for place, (one, change) in enumerate(zip(levels, changes, strict=True)):
        at, top = left + (place + 0.5) * pitch, min(y(change), y(0))
        kind = "better" if change < 0 else "bad"
        parts.append(box(at - 0.31 * pitch, top, 0.62 * pitch, abs(y(change) - y(0)), kind))
        below = y(change) + 14 if change < 0 else y(change) - 5
        parts.append(words(at, below, f"{change:+.1f}".replace("-", "\N{MINUS SIGN}"), "value"))
        parts.append(words(at, HIGH - 26, f"{one.first}"))
    parts.append(words(left, HIGH - 6, "little noise: fine detail", "axis", "start"))
    parts.append(words(right, HIGH - 6, "much noise: composition", "axis", "end"))
    label = "Change of the held-out loss by timestep: " + ", ".join(
        f"{one.first} to {one.last}: {change:+.1f} %"
        for one, change in zip(levels, changes, strict=True)
    )
    return svg(WIDE, HIGH, label, parts)


def strength_plot(row: RoundRow) -> str:
    """Loss at each strength that round `row` tried, on the choosing half, and their parabola."""
    wide, high = 240, 170
    tried = sorted(row.candidates, key=lambda candidate: candidate.strength)
    reach = [0.0, 1.0, row.strength, row.final_strength, *(c.strength for c in tried)]
    x = Scale(min(reach), max(reach), 50, wide - 14)
    curve = parabola(tried)
    y = padded([c.loss for c in tried] + [loss for _, loss in curve], high - 34, 12)
    parts = [grid(y, 50, wide - 10, 3)]
    parts.append(upright(x(row.strength), 8, high - 34, "chosen"))
    if row.final_strength != row.strength:
        parts.append(upright(x(row.final_strength), 8, high - 34, "refitted"))
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


def across(count: int) -> Scale:
    """Places 0..count-1 from left to right; a single one in the middle."""
    if count == 1:
        return Scale(-1, 1, LEFT, WIDE - RIGHT)
    return Scale(0, count - 1, LEFT + 22, WIDE - RIGHT - 24)


def named(names: Sequence[str], x: Scale) -> str:
    """The names of the places, as many as there is room for, the last always."""
    every, last = 1 + (len(names) - 1) // FEW, len(names) - 1
    return "".join(
        words(x(place), HIGH - 10, name)
        for place, name in enumerate(names)
        if (last - place) % every == 0
    )
