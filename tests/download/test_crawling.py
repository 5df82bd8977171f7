"""What happens between two pages of a search, and pages that are not what they should be."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from demo.booru import BooruServer
from demo.booru_faults import Fault, Hit
from demo.booru_posts import post_json
from demo.corpus import Corpus, Post
from pipeline.errors import RequestError, UrushiError

Serving = Callable[..., BooruServer]
SHORT = 7
"""Posts to a page, so that there are several."""


@pytest.fixture(autouse=True)
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.download.danbooru.PER_PAGE", SHORT)


def whole(corpus: Corpus) -> list[Post]:
    """Posts whose files come, each shown once; the newest first."""
    shared = {post.md5 for post in corpus.posts if post.flaw == "double"}
    good = [p for p in corpus.posts if p.md5 in corpus.wanted() and p.md5 not in shared]
    return good[::-1]


def seen(downloading) -> set[int]:
    return {number for (number,) in downloading.rows("SELECT post_id FROM crawl_post")}


def test_posts_that_come_and_go_while_pages_are_read_shift_nothing(
    downloading, serving: Serving, corpus: Corpus
) -> None:
    """Between any two pages one is posted on top and one further down is deleted."""
    below = whole(corpus)[SHORT * 2 :: 4]
    deleted: list[Post] = []

    def busy(hit: Hit) -> Fault | None:
        if hit.kind == "page" and "page=b" in hit.path:
            number = max(booru.posts) + 1
            booru.posts[number] = replace(corpus.posts[-1], id=number)
            cursor = int(hit.path.partition("page=b")[2].partition("&")[0])
            victim = next((p for p in below if p.id < cursor and p not in deleted), None)
            if victim is not None:
                deleted.append(victim)
                booru.posts[victim.id] = replace(victim, flaw="deleted")
        return None

    booru = serving(busy)
    oldest_first = {post.id for post in corpus.posts}
    downloading.write(booru.url)
    downloading.run()
    assert len(deleted) > 2 and len(booru.posts) > len(corpus.posts) + 2
    assert set(downloading.images()) == corpus.wanted() - {post.md5 for post in deleted}
    assert seen(downloading) < oldest_first
    pages = [hit.path for hit in booru.hits if hit.kind == "page"]
    assert len(set(pages)) == len(pages)
    downloading.run(refresh=True)  # What was posted meanwhile.
    assert {number for number in booru.posts if number not in oldest_first} <= seen(downloading)


def test_a_post_that_a_page_shows_twice_counts_once(
    downloading, serving: Serving, corpus: Corpus
) -> None:
    def stammering(hit: Hit) -> Fault | None:
        if hit.kind != "page" or hit.nth > 1:
            return None
        posts = [post_json(post, booru.url) for post in whole(corpus)[:4]]
        return Fault(body=json.dumps([*posts, *posts[::-1]]).encode())

    booru = serving(stammering)
    downloading.write(booru.url, limit=4)
    downloading.run()
    assert set(downloading.images()) == {post.md5 for post in whole(corpus)[:4]}
    assert seen(downloading) == {post.id for post in whole(corpus)[:4]}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[", id="cut off"),
        pytest.param(b"null", id="null"),
        pytest.param(b"\xff\xfe[\xd8", id="no text"),
        pytest.param('[{"id": "é"}]'.encode("latin-1"), id="another charset"),
        pytest.param(b'[{"id": 1e400}]', id="no number"),
        pytest.param(b'[{"id": 99999999999999999999}]', id="too large a number"),
        pytest.param(b"[" * 100_000, id="nested without end"),
    ],
)
def test_a_page_that_stays_nonsense_is_not_the_end_of_the_search(
    downloading, serving: Serving, corpus: Corpus, body: bytes
) -> None:
    """The run ends with an error, and the next one goes on at that page."""
    sick = True

    def plan(hit: Hit) -> Fault | None:
        return Fault(body=body) if sick and hit.kind == "page" and hit.nth > 2 else None

    booru = serving(plan)
    downloading.write(booru.url)
    with pytest.raises(UrushiError, match=r"not danbooru's API.*go on"):
        downloading.run()
    ((cursor, finished),) = downloading.rows("SELECT cursor, finished FROM crawl")
    assert (cursor, finished) == (min(seen(downloading)), 0)
    assert not list(downloading.folder.images.glob("*"))
    sick, before = False, booru.count("page")
    downloading.run()
    first = [hit.path for hit in booru.hits if hit.kind == "page"][before]
    assert f"page=b{cursor}" in first
    assert set(downloading.images()) == corpus.wanted()


def test_a_byte_order_mark_and_unknown_fields_are_no_nonsense(
    downloading, serving: Serving, corpus: Corpus
) -> None:
    def odd(hit: Hit) -> Fault | None:
        if hit.kind != "page" or hit.nth > 1:
            return None
        posts: list[dict[str, Any]] = [
            post_json(p, booru.url) | {"new_field": {"a": [2**70]}} for p in whole(corpus)[:3]
        ]
        return Fault(body=b"\xef\xbb\xbf" + json.dumps(posts).encode())

    booru = serving(odd)
    downloading.write(booru.url, limit=3)
    downloading.run()
    assert set(downloading.images()) == {post.md5 for post in whole(corpus)[:3]}
    assert booru.count("page") == 1


@pytest.mark.parametrize("status", [400, 410, 422])
def test_a_search_that_the_site_refuses_is_said_before_anything(
    downloading, serving: Serving, status: int
) -> None:
    told = b'{"success": false, "message": "You cannot search for more than 2 tags at a time."}'
    booru = serving(lambda hit: Fault(status=status, body=told))
    downloading.write(booru.url)
    with pytest.raises(RequestError, match=rf"\({status}\): You cannot.*\[download\].tags"):
        downloading.run()
    assert booru.count() == 1


def test_a_key_that_stops_working_stops_the_run_which_goes_on_later(
    downloading, serving: Serving, corpus: Corpus
) -> None:
    revoked = True

    def plan(hit: Hit) -> Fault | None:
        return Fault(status=401) if revoked and hit.kind == "page" and hit.nth > 2 else None

    booru = serving(plan)
    downloading.write(booru.url)
    with pytest.raises(UrushiError, match=r"keeps us out \(401\)"):
        downloading.run()
    assert [hit.kind for hit in booru.hits if hit.kind == "page"] == ["page"] * 3
    revoked = False
    downloading.run()
    assert set(downloading.images()) == corpus.wanted()


def test_many_tags_strange_ones_and_no_artist_come_as_they_are(
    downloading, booru: BooruServer, corpus: Corpus
) -> None:
    post = whole(corpus)[0]
    general = (*(f"tag_{number}" for number in range(1250)), "漆_塗り", "a&#039;b", ":d")
    booru.posts[post.id] = replace(post, tags={"general": general, "copyright": ("maki-e_box",)})
    downloading.write(booru.url, limit=1)
    downloading.run()
    tags = downloading.images()[post.md5].tags
    assert tags["general"] == general
    assert "artist" not in tags


def test_the_name_on_the_disk_is_the_types_not_the_posts(
    downloading, booru: BooruServer, corpus: Corpus
) -> None:
    post = next(p for p in whole(corpus) if p.extension == "jpg")
    day = corpus.posts[-1].created_at + timedelta(days=1)
    newest = corpus.posts[-1].id + 1
    booru.posts[newest] = replace(post, id=newest, extension="png", created_at=day)
    del booru.posts[post.id]
    downloading.write(booru.url, limit=1)
    downloading.run()
    (image,) = downloading.images().values()
    assert image.path == f"originals/{post.md5[:2]}/{post.md5[2:4]}/{post.md5}.jpg"
    assert downloading.files()[post.md5].read_bytes() == corpus.files[post.md5]
