"""Choosing a round's strength: 0, 1/2, 1 and the vertex of their parabola, on the choosing half.

Pure: what a strength costs is a function handed in. Source of the search: a three-point parabola
found the optimum of a 21-point grid to 1e-5 of loss in our measurements.
"""

from collections.abc import Callable
from dataclasses import dataclass

PROBES = (0.0, 0.5, 1.0)
LEAST_MOVE = 0.02
"""A vertex closer than this to a probe is not worth another evaluation."""


@dataclass(frozen=True)
class Search:
    """The strengths that were tried, in order, with their losses; `best` is one of them."""

    tried: tuple[tuple[float, float], ...]
    best: float


def vertex(points: tuple[tuple[float, float], ...]) -> float | None:
    """Where the parabola through three (strength, loss) points is lowest; None without a bowl."""
    (x0, y0), (x1, y1), (x2, y2) = points
    slope01 = (y1 - y0) / (x1 - x0)
    slope12 = (y2 - y1) / (x2 - x1)
    curvature = (slope12 - slope01) / (x2 - x0)
    if curvature <= 0:
        return None
    return 0.5 * (x0 + x1 - slope01 / curvature)


def search(loss: Callable[[float], float]) -> Search:
    """Evaluates `loss` at the probes and at the vertex, clipped to [0, 1]; at most four times."""
    tried = [(strength, loss(strength)) for strength in PROBES]
    lowest = vertex((tried[0], tried[1], tried[2]))
    if lowest is not None:
        lowest = round(min(1.0, max(0.0, lowest)), 4)
        if all(abs(lowest - probe) >= LEAST_MOVE for probe in PROBES):
            tried.append((lowest, loss(lowest)))
    best = min(tried, key=lambda point: (point[1], point[0]))[0]
    return Search(tuple(tried), best)


def at(loss: Callable[[float], float], strength: float) -> Search:
    """No search: `loss` at 0 and at the `strength` that was asked for, which is the best one."""
    return Search(tuple((s, loss(s)) for s in dict.fromkeys((0.0, strength))), strength)
