"""What rules take of a search's posts, and the reason for everything that they leave."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.download.choice import Choice, files_known
from pipeline.download.header import Picture
from pipeline.download.likeness import Looks
from pipeline.download.posts import UNKNOWN, Post
from pipeline.download.rules import Exclusion, Rules
from pipeline.download.store import Store
from pipeline.size import Size

MakePost = Callable[..., Post]
RULES = Rules(("general",), limit=100)


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "posts.sqlite", "danbooru") as store:
        yield store


def of(store: Store, posts: list[Post], rules: Rules = RULES) -> Choice:
    crawl = store.crawl("q") or store.begin_crawl("q", None, [], cursor=None, finished=False)
    crawl = store.save_page(crawl, posts, cursor=1, finished=True)
    assert files_known(store, crawl, replace(rules, limit=1)) >= Choice(store, crawl, rules).count
    return Choice(store, crawl, rules)


def taken(choice: Choice) -> list[int]:
    return [item.post_id for item in choice.wanted()]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"status": "deleted"}, "gone: its post is deleted"),
        ({"status": "missing", "rating": "explicit"}, "gone: its post is missing"),
        ({"rating": "sensitive"}, "rating: sensitive"),
        ({"rating": "unknown"}, "rating: unknown"),
        ({"md5": None}, "hidden: the site does not show its file"),
        ({"status": "banned"}, "hidden: the site does not show its file"),
        ({"extension": "mp4"}, "format: mp4 is not taken"),
        ({"extension": "zip"}, "format: zip is not taken"),
        ({"animated": True, "extension": "webp"}, "moves: a video or an animation"),
        ({"size": Size(20_000, 6_001)}, "size: more than 120,000,000 pixels"),
        (
            {"tags": {UNKNOWN: ("someone",), "general": ("cat",)}},
            "tags of unknown kind: an artist's name may be among them",
        ),
        ({"score": 4}, "score: below 5"),
        ({"score": None}, "score: below 5"),
    ],
)
def test_what_is_left_has_a_reason(
    store: Store, make_post: MakePost, said: dict[str, Any], why: str
) -> None:
    rules = replace(RULES, least_score=5)
    choice = of(store, [make_post(2, score=5), make_post(1, **{"score": 9} | said)], rules)
    assert taken(choice) == [2]
    assert choice.left == {why: 1}


def test_the_pixel_budget_is_the_recipes(store: Store, make_post: MakePost) -> None:
    post = make_post(1, size=Size(64, 48))
    assert taken(of(store, [post], replace(RULES, most_pixels=64 * 48))) == [1]
    assert taken(of(store, [post], replace(RULES, most_pixels=64 * 48 - 1))) == []


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("md5", f"{1:032x}"),
        ("post", "1"),
        ("artist", "artist_1"),
        ("tag", "robot"),
        ("tag", "artist_1"),
        ("uploader", "bob"),
        ("domain", "pixiv.example"),
        ("domain", "www.pixiv.example"),
        ("domain", "other.example"),
    ],
)
def test_an_exclusion_leaves_out_and_says_which(
    store: Store, make_post: MakePost, kind: Any, pattern: str
) -> None:
    first = make_post(
        1,
        uploader="Bob",
        source_url="https://www.pixiv.example/artworks/1\nhttp://Other.Example./x\nhttp://[",
        tags={"general": ("robot",), "artist": ("artist_1",)},
    )
    second = make_post(
        2, uploader="bobby", source_url="https://notpixiv.example/", tags={"general": ("robots",)}
    )
    barred = Exclusion(kind, pattern, "list.txt, line 3")
    choice = of(store, [second, first], replace(RULES, exclusions=(barred,)))
    assert taken(choice) == [2]
    assert choice.left == {f"excluded: {kind} {pattern}": 1}
    choice.log()
    logged = store.db.execute("SELECT md5, rule, origin FROM left_out").fetchall()
    assert logged == [(first.md5, f"{kind} {pattern}", "list.txt, line 3")]


def test_the_log_keeps_since_when_and_forgets_what_is_allowed_again(
    store: Store, make_post: MakePost
) -> None:
    posts = [make_post(n) for n in (3, 2, 1)]
    two = tuple(Exclusion("post", str(n), "[exclude].posts") for n in (1, 2))
    of(store, posts, replace(RULES, exclusions=two)).log()
    store.db.execute("UPDATE left_out SET decided_at = 'once'")
    moved = (replace(two[0], origin="list.txt, line 1"), two[1])
    of(store, posts, replace(RULES, exclusions=moved)).log()
    rows = store.db.execute("SELECT rule, origin, decided_at = 'once' FROM left_out ORDER BY rule")
    assert rows.fetchall() == [
        ("post 1", "list.txt, line 1", 0),
        ("post 2", "[exclude].posts", 1),
    ]
    of(store, posts, replace(RULES, exclusions=two[1:])).log()
    assert store.db.execute("SELECT rule FROM left_out").fetchall() == [("post 2",)]


def test_a_file_is_excluded_whichever_of_its_posts_a_rule_fits(
    store: Store, make_post: MakePost
) -> None:
    """And with it every file of the same pixels: a re-upload is the same picture."""
    twin = make_post(2, md5=f"{1:032x}", tags={"artist": ("someone",)})
    again = make_post(3, pixel_hash="ab" * 16)
    pixels = make_post(1, pixel_hash="ab" * 16)
    barred = (Exclusion("artist", "someone", "x"),)
    choice = of(store, [make_post(4), again, twin, pixels], replace(RULES, exclusions=barred))
    assert taken(choice) == [4]
    assert choice.left == {
        "excluded: artist someone": 2,
        "excluded: artist someone, same pixels": 1,
    }


def test_our_own_digest_of_pixels_counts_too(store: Store, make_post: MakePost) -> None:
    for number in (1, 2):
        store.have(f"{number:032x}", Picture("png", Size(4, 3)), 10)
        store.examined(f"{number:032x}", Looks("cd" * 16, 0))
    barred = (Exclusion("md5", f"{1:032x}", "x"),)
    choice = of(store, [make_post(n) for n in (3, 2, 1)], replace(RULES, exclusions=barred))
    assert taken(choice) == [3]


def test_files_come_once_newest_first_up_to_the_limit(store: Store, make_post: MakePost) -> None:
    posts = [make_post(n) for n in (9, 8, 7, 5, 4)]
    posts.insert(3, make_post(6, md5=f"{9:032x}"))
    assert taken(of(store, posts)) == [9, 8, 7, 5, 4]
    few = of(store, [*posts, make_post(3, rating="explicit")], replace(RULES, limit=4))
    assert taken(few) == [9, 8, 7, 5]
    assert few.left == {}  # What is older than the oldest of them was never asked for.


def test_only_posts_of_the_search_count(store: Store, make_post: MakePost) -> None:
    store.save_post(make_post(7))
    assert taken(of(store, [make_post(1)])) == [1]


def test_doubles_keep_the_first_that_was_posted(store: Store, make_post: MakePost) -> None:
    """2 and 3 by the site's digest, 3 and 4 by ours: all three are one picture, kept as 2."""
    pixels = {1: "a", 2: "b", 3: "c", 4: "c", 5: "e"}
    stated = {2: "s", 3: "s"}
    for number, digest in pixels.items():
        store.have(f"{number:032x}", Picture("png", Size(4, 3)), 10)
        store.examined(f"{number:032x}", Looks(digest, 0))
    posts = [make_post(n, pixel_hash=stated.get(n)) for n in (5, 4, 3, 2, 1)]
    doubles = of(store, posts).doubles()
    assert doubles == {f"{3:032x}": f"{2:032x}", f"{4:032x}": f"{2:032x}"}


def test_more_rows_than_one_read_holds(store: Store, make_post: MakePost) -> None:
    posts = [make_post(n) for n in range(2500, 0, -1)]
    choice = of(store, posts, replace(RULES, limit=2400))
    seen = []
    for item in choice.wanted():
        store.settle(item.md5, "gone", "while it is read")
        seen.append(item.post_id)
    assert seen == list(range(2500, 100, -1))
    assert choice.outstanding() == (0, 0, 0)


def test_a_variant_names_the_post_it_is_of(store: Store, make_post: MakePost) -> None:
    choice = of(store, [make_post(2, parent_id=1), make_post(1)])
    assert {facts.post_id: facts.parent for facts in choice.facts()} == {1: None, 2: 1}
