"""Points, lines and words as inline SVG. Colours are classes that the page's style sheet fills in,
so one drawing serves the light and the dark scheme, screen and print."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Scale:
    """Values low..high onto pixels start..end; pixels may run downwards."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """About `count` round values within low..high: 1, 2 or 5 times a power of ten apart."""
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        raw = span / count
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def padded(values: Iterable[float], start: float, end: float, pad: float = 0.12) -> Scale:
    """A scale over `values` with `pad` of their span left free at both ends."""
    held = list(values)
    low, high = min(held), max(held)
    room = (high - low) * pad or abs(high) * pad or 1.0
    return Scale(low - room, high + room, start, end)


def decimals(ticks: Sequence[float]) -> int:
    """How many decimals tell the ticks apart."""
    step = min((b - a for a, b in pairwise(ticks)), default=abs(ticks[0]) or 1)
    return max(0, -math.floor(math.log10(step) + 1e-9))


def path(points: Sequence[Point], kind: str) -> str:
    """A line through `points`."""
    steps = " ".join(f"{'L' if n else 'M'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(points))
    return f'<path class="{kind}" d="{steps}"/>'


def dot(x: float, y: float, kind: str, radius: float = 4.5) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A bar; sides shorter than a pixel are shown as one."""
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" '
        f'height="{max(height, 1):.1f}" rx="2"/>'
    )


def words(x: float, y: float, text: str, kind: str = "label", anchor: Anchor = "middle") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def level(y: float, left: float, right: float, kind: str = "rule") -> str:
    return path([(left, y), (right, y)], kind)


def upright(x: float, top: float, bottom: float, kind: str = "rule") -> str:
    return path([(x, top), (x, bottom)], kind)


def svg(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    """The drawing as an element that grows with the page; `label` is what a reader is told."""
    return (
        f'<svg class="plot" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {width:g} {height:g}">{"".join(parts)}</svg>'
    )
