"""What belongs together stays on one side of a held-out split."""

from itertools import combinations

import pytest

from pipeline.artefacts.records import ImageRecord
from pipeline.errors import RequestError
from pipeline.rounds.groups import grouped
from pipeline.rounds.split import draw_split

MD5S = [f"{n:032x}" for n in range(100)]


def picture(number: int, artists: tuple[str, ...] = (), kin: tuple[str, ...] = ()) -> ImageRecord:
    return ImageRecord(
        md5=MD5S[number],
        path="",
        width=8,
        height=8,
        tags={"artist": artists},
        score=None,
        rating="general",
        source=f"danbooru:{number}",
        kin=(f"danbooru:{number}", *kin),
    )


def test_kin_likeness_and_small_artists_bind_and_large_ones_do_not() -> None:
    records = [picture(n, ("everybody",)) for n in range(100)]
    records[1] = picture(1, ("few",))
    records[2] = picture(2, ("few",), ("danbooru:3",))  # A variant of post 3.
    records[4] = picture(4, ("everybody",), ("danbooru:999",))
    records[5] = picture(5, ("everybody",), ("danbooru:999",))  # Of one post that is not here.
    groups = grouped([records], [(MD5S[3], MD5S[6]), (MD5S[7], "f" * 32)], MD5S)
    assert [g for g in groups if len(g) > 1] == [
        (MD5S[1], MD5S[2], MD5S[3], MD5S[6]),
        (MD5S[4], MD5S[5]),
    ]
    assert sorted(md5 for group in groups for md5 in group) == MD5S


def test_a_group_is_never_parted() -> None:
    groups = [tuple(MD5S[n : n + 3]) for n in range(0, 60, 3)] + [(md5,) for md5 in MD5S[60:]]
    for seed in range(20):
        split = draw_split("set", "f", MD5S, 0.2, 2, seed, groups)
        side = dict.fromkeys(MD5S, "train") | {
            p.md5: "chooses" if p.chooses else "judges" for p in split.held_out
        }
        for group in groups:
            assert len({side[md5] for md5 in group}) == 1
        assert abs(len(split.chooses) - len(split.judges)) <= 3
        assert 16 <= len(split.held_out) <= 20


def test_without_groups_each_picture_is_by_itself() -> None:
    alone = [(md5,) for md5 in MD5S]
    assert draw_split("set", "f", MD5S, 0.1, 2, 3, alone) == draw_split("set", "f", MD5S, 0.1, 2, 3)


def test_one_scene_in_all_pictures_is_refused_and_named() -> None:
    with pytest.raises(RequestError, match="near-duplicates, variants or of one artist"):
        draw_split("set", "f", MD5S, 0.05, 2, 1, [tuple(MD5S)])


def test_two_pictures_to_judge_by_are_refused() -> None:
    groups = [tuple(MD5S[:60]), tuple(MD5S[60:98]), (MD5S[98],), (MD5S[99],)]
    with pytest.raises(RequestError, match="4 to judge by cannot be kept apart"):
        draw_split("set", "f", MD5S, 0.05, 2, 1, groups)


def test_anything_joins_what_shares_a_post() -> None:
    for one, other in combinations(range(3), 2):
        records = [picture(n, (), ("danbooru:0",)) for n in range(3)]
        groups = grouped([records], [], MD5S[:3])
        assert any({MD5S[one], MD5S[other]} <= set(group) for group in groups)


def test_groups_reach_across_datasets_but_not_by_what_one_of_them_is_about() -> None:
    few = [picture(n, ("few",)) for n in range(2)] + [picture(n) for n in range(2, 40)]
    other = [picture(40, ("few",))] + [picture(n, ("everybody",)) for n in range(41, 99)]
    few[5] = picture(5, ("everybody",))
    few[6] = picture(6, (), ("danbooru:50",))
    groups = grouped([few, other], [(MD5S[7], MD5S[60])], MD5S[:99])
    assert [g for g in groups if len(g) > 1] == [
        (MD5S[0], MD5S[1], MD5S[40]),
        (MD5S[6], MD5S[50]),
        (MD5S[7], MD5S[60]),
    ]
