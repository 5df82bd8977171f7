"""The learning rate inside a round."""

import pytest

from pipeline.train.rate import Phase, cosine, jagged


def test_a_whole_cosine_falls_from_the_peak_to_the_floor() -> None:
    factors = [cosine(step, 100, 0, 0.1) for step in range(101)]
    assert factors[0] == 1.0 and factors[100] == pytest.approx(0.1)
    assert factors[50] == pytest.approx(0.55)
    assert factors == sorted(factors, reverse=True)


def test_the_warm_up_rises_to_the_cosine() -> None:
    factors = [cosine(step, 100, 4, 0.1) for step in range(10)]
    assert factors[0] == pytest.approx(0.2)
    assert factors[:5] == sorted(factors[:5])
    assert factors[4:] == [cosine(step, 100, 0, 0.1) for step in range(4, 10)]


def test_the_jagged_cosine_is_one_cosine_with_warm_ups() -> None:
    phases = jagged((30, 50, 20))
    assert phases == (Phase(0.0, 0.3), Phase(0.3, 0.8), Phase(0.8, 1.0))
    whole = [cosine(step, 100, 0, 0.1) for step in range(100)]
    pieces = [
        cosine(step, count, 0, 0.1, phase)
        for count, phase in zip((30, 50, 20), phases, strict=True)
        for step in range(count)
    ]
    assert pieces == pytest.approx(whole)
    assert cosine(0, 50, 4, 0.1, phases[1]) == pytest.approx(whole[30] / 5)
