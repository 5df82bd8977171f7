"""Split, strength search and gate: pure rules, worked by hand."""

import pytest

from pipeline.errors import RequestError
from pipeline.rounds.gate import judge
from pipeline.rounds.split import draw_split
from pipeline.rounds.strength import search, vertex

MD5S = [f"{i:032x}" for i in range(200)]


def test_the_vertex_of_a_known_parabola() -> None:
    # 3 (s - 0.7)^2 + 2
    points = tuple((s, 3 * (s - 0.7) ** 2 + 2) for s in (0.0, 0.5, 1.0))
    assert vertex(points) == pytest.approx(0.7)
    assert vertex(((0.0, 0.0), (0.5, 1.0), (1.0, 0.0))) is None


def test_search_finds_the_bowl_in_four_evaluations() -> None:
    found = search(lambda s: (s - 0.7) ** 2)
    assert [s for s, _ in found.tried] == [0.0, 0.5, 1.0, 0.7]
    assert found.best == 0.7


def test_search_stays_within_zero_and_one() -> None:
    assert search(lambda s: (s - 1.4) ** 2).best == 1.0
    assert search(lambda s: (s + 0.3) ** 2).best == 0.0


def test_search_does_not_repeat_a_probe_and_survives_a_hill() -> None:
    assert len(search(lambda s: (s - 0.5) ** 2).tried) == 3
    hill = search(lambda s: -((s - 0.4) ** 2))
    assert len(hill.tried) == 3
    assert hill.best == 1.0


def test_the_gate_sees_a_paired_gain_that_raw_losses_hide() -> None:
    before = [0.1, 0.9, 0.5, 0.3]
    after = [loss - 0.01 for loss in before]
    verdict = judge(before, after, seed=1)
    assert verdict.improves
    assert verdict.low == pytest.approx(0.01) and verdict.high == pytest.approx(0.01)
    assert not judge(after, before, seed=1).improves
    assert not judge(before, before, seed=1).improves


def test_the_interval_holds_the_mean_and_is_the_seeds_own() -> None:
    before = [0.5 + 0.01 * (i % 7) for i in range(40)]
    after = [0.5 + 0.01 * (i % 5) for i in range(40)]
    verdict = judge(before, after, seed=3)
    assert verdict.low < verdict.before - verdict.after < verdict.high
    assert judge(before, after, seed=3) == verdict


def test_the_split_is_of_the_asked_size_halved_and_stratified() -> None:
    split = draw_split("set", "f", MD5S, share=0.1, timesteps=4, seed=9)
    assert len(split.held_out) == 20
    assert sum(p.chooses for p in split.held_out) == 10
    for picture in split.held_out:
        assert [t // 250 for t in picture.timesteps] == [0, 1, 2, 3]
    seeds = [seed for p in split.held_out for seed in p.noise_seeds]
    assert len(set(seeds)) == 80


def test_new_pictures_keep_old_ones_on_their_side() -> None:
    old = draw_split("set", "f", MD5S[:180], share=0.1, timesteps=2, seed=9)
    new = draw_split("set", "g", MD5S, share=0.1, timesteps=2, seed=9)
    moved_out = old.md5s - new.md5s
    # Twenty newcomers can push at most as many off the list as of them got onto it.
    newcomers = new.md5s & set(MD5S[180:])
    assert len(moved_out) <= max(0, len(newcomers) - 2)


def test_too_few_pictures_are_refused_and_named() -> None:
    with pytest.raises(RequestError, match=r"set has 7 pictures; at least 8"):
        draw_split("set", "f", MD5S[:7], share=0.05, timesteps=4, seed=1)
    assert len(draw_split("set", "f", MD5S[:8], 0.05, 4, 1).held_out) == 4
