"""Stop rules, rate trials and the anchor's shrinking, worked by hand."""

from dataclasses import replace

import pytest

from pipeline.rounds.gate import ceiling, shrink
from pipeline.rounds.stop import Limits, Past, why_stop
from pipeline.rounds.trials import tune

GOOD = Past(round=1, merged=True, low=0.01, drift=0.02, anchor=1.1, seconds=1800)
LIMITS = Limits(patience=2, drift=0.1, anchor=1.5, hours=2)


def rounds(*changes: dict[str, object]) -> list[Past]:
    return [replace(GOOD, round=n, **change) for n, change in enumerate(changes, 1)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("past", "rule"),
    [
        ([], None),
        (rounds({}), None),
        (rounds({"merged": False}, {}, {"merged": False}), None),
        (rounds({}, {"merged": False}, {"merged": False}), "rejections"),
        (rounds({"low": -0.1}, {"low": 0.0}), "noise"),
        (rounds({"low": -0.1}, {"merged": False}), None),
        (rounds({}, {"drift": 0.1}), "drift"),
        (rounds({"anchor": 1.48}), None),
        (rounds({"anchor": 1.49}), "anchor"),
        (rounds({"anchor": None}), None),
        (rounds({}, {}, {}), None),
        (rounds({}, {}, {}, {}), "time"),
    ],
)
def test_every_rule(past: list[Past], rule: str | None) -> None:
    stop = why_stop(past, LIMITS)
    assert (stop.rule if stop else None) == rule
    assert stop is None or stop.round == len(past)


def test_no_limits_never_stop() -> None:
    bad = rounds(*({"merged": False, "drift": 9.0, "anchor": 99.0, "seconds": 1e9},) * 9)
    assert why_stop(bad, Limits(None, None, None, None)) is None


def test_the_anchor_shrinks_a_strength_to_its_ceiling() -> None:
    def anchor(s: float) -> float:
        return 1.0 + 0.6 * s + 0.3 * s * s

    found = shrink(anchor, 1.0, 1.25)
    exact = (-0.6 + (0.36 + 4 * 0.3 * 0.25) ** 0.5) / 0.6
    assert 0.9 * exact <= found.strength <= exact
    assert dict(found.tried)[found.strength] <= 1.25
    assert len(found.tried) <= 6


def test_what_the_anchor_allows_is_kept_with_one_look() -> None:
    assert shrink(lambda s: 1 + 0.1 * s, 0.8, 1.25).tried == ((0.8, 1.08),)
    assert shrink(lambda s: 1 + 0.1 * s, 0.8, 1.25).strength == 0.8
    assert shrink(lambda s: 1 + 0.1 * s, 0.8, 0.9).strength == 0.0


def test_the_ceiling_is_of_the_round_and_of_the_whole() -> None:
    assert ceiling(2.0, 1.0, None) == 2.5
    assert ceiling(2.0, 1.0, 1.2) == 2.2
    assert ceiling(1.0, 1.0, 1.2) == 1.25


def test_trials_take_the_lowest_rate_that_is_as_good() -> None:
    losses = {1e-4: 0.9, 3e-4: 0.5, 1e-3: 0.49990}
    found = tune(losses.__getitem__, (1e-3, 1e-4, 3e-4))
    assert found.tried == ((1e-4, 0.9), (3e-4, 0.5), (1e-3, 0.4999))
    assert found.best == 3e-4
    losses[1e-3] = 0.4
    assert tune(losses.__getitem__, tuple(losses)).best == 1e-3
