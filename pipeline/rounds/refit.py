"""All strengths of a chain at once, after its last round: Gauss-Newton on the choosing half.

A round's own search is short-sighted: it takes nearly all of round 1 and little of what follows.
Once all deltas are there, their strengths s (K,) are fitted together. The loss is the mean square
of residuals e(s) = prediction - wanted, and predictions are nearly linear in s, so that

    loss(s + d) = loss(s) + slope·d + d·curvature·d / 2,
    slope = 2 mean(Jᵀe),  curvature = 2 mean(JᵀJ),  J = de/ds by differences,

is nearly exact: one step costs K + 1 passes over the pictures, where a fit of the losses alone
would cost (K + 1)(K + 2) / 2. Pure: residuals and losses come from functions handed in. Nocedal and
Wright, Numerical Optimization, chapter 10 (Gauss-Newton) and 16.7 (bounds).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

STEP = 0.1
"""Of a strength, for the differences: wide enough for float32, small against [0, 1]."""
ROUNDS = 3
"""Most times that the quadratic is made anew."""
HALVINGS = 3
"""Most tries at a step, each half as long as the one before, until the loss falls."""
SETTLED = 1e-5
"""Of the loss: a step that gains less is the last."""
RIDGE = 1e-3
"""Of the mean curvature, added to its diagonal: what no picture can tell stays as it was."""
SWEEPS = 200
"""Over all coordinates when the bounded quadratic is minimised."""


@dataclass(frozen=True)
class Quadratic:
    """The loss around a point, as sums over residuals, so that batches can be added up."""

    square: float
    """Sum of e²."""
    slope: Vector
    """Sum of Jᵀe, (K,)."""
    curvature: Vector
    """Sum of JᵀJ, (K, K)."""

    def __add__(self, other: "Quadratic") -> "Quadratic":
        return Quadratic(
            self.square + other.square,
            self.slope + other.slope,
            self.curvature + other.curvature,
        )


@dataclass(frozen=True)
class Refit:
    """What came of it. Losses are means over the choosing half."""

    strengths: tuple[float, ...]
    before: float
    """At the strengths that it started from."""
    after: float
    """At `strengths`; never above `before`."""
    passes: int
    """Over the choosing half, in all: K + 1 for each quadratic and one for each step tried."""


def moves(strengths: Sequence[float], upper: float) -> tuple[float, ...]:
    """The step of each strength's difference: up, or down where up would leave [0, upper]."""
    return tuple(STEP if s + STEP <= upper else -STEP for s in strengths)


def quadratic(centre: Vector, shifted: Sequence[Vector], steps: Sequence[float]) -> Quadratic:
    """The sums of one batch.

    Args:
        centre: (N,) residuals at the strengths.
        shifted: K of (N,), with one strength each moved by its step of `moves`.
        steps: (K,)
    """
    jacobian = np.stack(
        [(moved - centre) / step for moved, step in zip(shifted, steps, strict=True)]
    )
    jacobian, centre = jacobian.astype(np.float64), centre.astype(np.float64)
    return Quadratic(float(centre @ centre), jacobian @ centre, jacobian @ jacobian.T)


def quadratic_of(residuals: Callable[[Sequence[float]], Vector]) -> Callable[..., Quadratic]:
    """What `refit` asks for, where all residuals of a strength vector fit into memory at once."""

    def around(strengths: Sequence[float], steps: Sequence[float]) -> Quadratic:
        moved = []
        for index, step in enumerate(steps):
            shifted = list(strengths)
            shifted[index] += step
            moved.append(residuals(shifted))
        return quadratic(residuals(strengths), moved, steps)

    return around


def most_passes(count: int) -> int:
    """Passes over the pictures that a refit of `count` strengths takes at most."""
    return ROUNDS * (count + 1 + HALVINGS) + 1


def refit(
    loss: Callable[[Sequence[float]], float],
    around: Callable[[Sequence[float], Sequence[float]], Quadratic],
    start: Sequence[float],
    upper: float = 1.0,
) -> Refit:
    """The strengths within [0, upper] of least loss, as far as 3 bounded Gauss-Newton steps reach.

    Mostly K + 3 passes, at most `most_passes`.

    Args:
        loss: mean loss of the choosing half at a strength vector, with common random numbers.
        around: the Quadratic there; its second argument is the step of each strength's difference.
        start: the strengths that the rounds were merged at.
        upper: the bound from above; a start beyond it stands for itself.
    """
    bounds = np.maximum(upper, np.asarray(start, dtype=np.float64))
    current = np.asarray(start, dtype=np.float64)
    passes, before = 0, float("nan")
    best = before
    for number in range(ROUNDS):
        model = around(tuple(current), moves(tuple(current), upper))
        passes += len(current) + 1
        if number == 0:
            before = best = loss(tuple(current))
            passes += 1
        target = _lowest(model, current, bounds)
        found, length = None, 1.0
        for _ in range(HALVINGS):
            candidate = np.round(current + length * (target - current), 4)
            if np.array_equal(candidate, current):
                break
            value = loss(tuple(candidate))
            passes += 1
            if value < best:
                found, gained, best = candidate, best - value, value
                break
            length *= 0.5
        if found is None:
            break
        current = found
        if gained < SETTLED * abs(before):
            break
    return Refit(tuple(float(s) for s in current), before, best, passes)


def _lowest(model: Quadratic, centre: Vector, bounds: Vector) -> Vector:
    """The minimum of the quadratic within [0, bounds], by coordinates: it is convex."""
    size = len(centre)
    curvature = model.curvature.copy()
    curvature[np.diag_indices(size)] += RIDGE * max(np.trace(model.curvature) / size, 1e-30)
    point = centre.copy()
    for _ in range(SWEEPS):
        largest = 0.0
        for index in range(size):
            slope = model.slope[index] + curvature[index] @ (point - centre)
            moved = float(np.clip(point[index] - slope / curvature[index, index], 0, bounds[index]))
            largest = max(largest, abs(moved - point[index]))
            point[index] = moved
        if largest < 1e-7:
            break
    return point
