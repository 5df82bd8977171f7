"""One falling rate over several rounds, each with a warm-up of its own."""

import pytest

from pipeline.recipe.train import Train
from pipeline.train.rate import Phase, jagged
from pipeline.train.schedule import factor

COSINE = Train(scheduler="cosine", min_rate=0.1)


def test_the_jagged_cosine_is_one_cosine_in_pieces() -> None:
    phases = jagged((30, 50, 20))
    assert phases == (Phase(0.0, 0.3), Phase(0.3, 0.8), Phase(0.8, 1.0))
    whole = [factor(COSINE, step, 0, 100) for step in range(100)]
    pieces = [
        factor(COSINE, step, 0, count, phase)
        for count, phase in zip((30, 50, 20), phases, strict=True)
        for step in range(count)
    ]
    assert pieces == pytest.approx(whole)


def test_a_restart_rises_to_where_its_piece_begins() -> None:
    piece = Phase(0.5, 1.0)
    rise = [factor(COSINE, step, 4, 20, piece) for step in range(6)]
    assert rise[0] == 0.0 and rise[:5] == sorted(rise[:5])
    assert rise[4] == pytest.approx(0.55) and rise[5] < rise[4]
    assert factor(COSINE, 20, 4, 20, piece) == pytest.approx(0.1)
