import pytest

from pipeline.artefacts.ledger import Candidate
from pipeline.preview.plots import parabola
from pipeline.preview.svg import Scale, decimals, padded, svg, words


def test_a_scale_runs_as_its_pixels_do() -> None:
    down = Scale(1.0, 3.0, 200.0, 100.0)
    assert [down(value) for value in (1.0, 2.0, 3.0)] == [200.0, 150.0, 100.0]
    assert Scale(2.0, 2.0, 0.0, 10.0)(2.0) == 0.0


@pytest.mark.parametrize(
    ("low", "high", "count", "ticks", "places"),
    [
        (0.0, 1.0, 2, [0.0, 0.5, 1.0], 1),
        (0.118, 0.143, 3, [0.12, 0.13, 0.14], 2),
        (-7.0, 13.0, 4, [-5.0, 0.0, 5.0, 10.0], 0),
        (4.0, 4.0, 4, [4.0], 0),
    ],
)
def test_ticks_are_round_and_within(
    low: float, high: float, count: int, ticks: list[float], places: int
) -> None:
    found = Scale(low, high, 0, 100).ticks(count)
    assert found == pytest.approx(ticks)
    assert decimals(found) == places


def test_padding_leaves_room_also_around_a_single_value() -> None:
    assert padded([1.0, 2.0], 0, 100, 0.5) == Scale(0.5, 2.5, 0, 100)
    assert padded([2.0], 0, 100, 0.5) == Scale(1.0, 3.0, 0, 100)
    assert padded([0.0], 0, 100).low < 0 < padded([0.0], 0, 100).high


def test_a_parabola_is_met_exactly_by_three_points_on_it() -> None:
    tried = [Candidate(strength=s, loss=(s - 0.7) ** 2 + 1) for s in (0.0, 0.5, 1.0)]
    for strength, loss in parabola(tried):
        assert loss == pytest.approx((strength - 0.7) ** 2 + 1)
    assert parabola(tried[:2]) == [(0.0, pytest.approx(1.49)), (0.5, pytest.approx(1.04))]


def test_words_are_escaped() -> None:
    assert "&lt;b&gt;" in words(0, 0, "<b>")
    assert 'aria-label="&quot;a&quot;"' in svg(1, 1, '"a"', ())
