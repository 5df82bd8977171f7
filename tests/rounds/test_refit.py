"""The refit of all strengths together, on problems whose best strengths are known."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pipeline.rounds.refit import Vector, most_passes, moves, quadratic, quadratic_of, refit

Residuals = Callable[[Sequence[float]], Vector]


def problem(best: Sequence[float], bend: float = 0.0) -> Residuals:
    """500 residuals, linear in the strengths but for `bend`, all 0 at `best` but for noise."""
    rng = np.random.default_rng(3)
    columns = rng.normal(size=(500, len(best)))
    columns[:, 1:] += 0.8 * columns[:, :1]  # Rounds that learned much the same.
    noise = 0.1 * rng.normal(size=500)

    def residuals(strengths: Sequence[float]) -> Vector:
        off = np.asarray(strengths) - np.asarray(best)
        made: Vector = columns @ off + bend * (columns @ off) ** 2 + noise
        return made

    return residuals


def mean_square(residuals: Residuals) -> Callable[[Sequence[float]], float]:
    return lambda strengths: float(np.mean(residuals(strengths) ** 2))


def test_a_linear_problem_is_solved_in_one_step() -> None:
    made = problem((0.3, 0.9, 0.6))
    found = refit(mean_square(made), quadratic_of(made), (1.0, 0.4, 0.1))
    assert found.strengths == pytest.approx((0.3, 0.9, 0.6), abs=0.02)
    assert found.passes <= 2 * (3 + 2) + 3
    assert found.after == pytest.approx(0.01, rel=0.2) and found.before > 0.1


def test_strengths_stay_in_bounds_and_the_others_make_up_for_it() -> None:
    made = problem((1.6, -0.4, 0.5))
    found = refit(mean_square(made), quadratic_of(made), (0.5, 0.5, 0.5))
    assert found.strengths[0] == 1.0 and found.strengths[1] == 0.0
    # The best third strength given the first two at their bounds, by least squares along it.
    losses = {s: mean_square(made)((1.0, 0.0, s)) for s in np.linspace(0, 1, 201)}
    assert found.after == pytest.approx(min(losses.values()), rel=1e-3)
    wider = refit(mean_square(made), quadratic_of(made), (0.5, 0.5, 0.5), upper=2.0)
    assert wider.strengths[0] > 1.0 and wider.after < found.after


def test_it_is_never_worse_than_where_it_started() -> None:
    made = problem((0.5, 0.5), bend=0.6)
    loss = mean_square(made)
    for start in ((0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (1.0, 0.0)):
        found = refit(loss, quadratic_of(made), start)
        assert found.after == loss(found.strengths) <= found.before == loss(start)
        assert found.passes <= most_passes(2) == 19


def test_what_is_best_already_stays() -> None:
    made = problem((0.4, 0.7))
    first = refit(mean_square(made), quadratic_of(made), (1.0, 1.0))
    again = refit(mean_square(made), quadratic_of(made), first.strengths)
    assert again.strengths == pytest.approx(first.strengths, abs=1e-3)


def test_batches_add_up() -> None:
    """The curvature of a linear problem is the columns' Gram matrix, however it is summed."""
    made, strengths = problem((0.3, 0.9)), (0.95, 0.2)
    steps = moves(strengths, 1.0)
    assert steps == (-0.1, 0.1)
    centre = made(strengths)
    shifted = [made((0.85, 0.2)), made((0.95, 0.3))]
    whole = quadratic(centre, shifted, steps)
    half = quadratic(centre[:200], [s[:200] for s in shifted], steps)
    rest = quadratic(centre[200:], [s[200:] for s in shifted], steps)
    total = half + rest
    assert total.square == pytest.approx(whole.square) == pytest.approx(float(centre @ centre))
    np.testing.assert_allclose(total.curvature, whole.curvature)
    np.testing.assert_allclose(total.slope, whole.slope)
