"""--refresh: what became of the posts, with no file fetched again; exclusions on old files."""

import io
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from demo.booru import BooruServer, running
from demo.booru_dialects import Family
from demo.booru_faults import Fault, Hit
from demo.corpus import Corpus, Post
from pipeline.errors import UrushiError


def sound(corpus: Corpus) -> list[Post]:
    """General posts whose files are whole and shown once, the oldest first."""
    shared = {post.md5 for post in corpus.posts if post.flaw == "double"}
    return [p for p in corpus.posts if p.md5 in corpus.wanted() and p.md5 not in shared]


def scored(post: Post, score: int) -> Post:
    return replace(post, up_score=score - post.down_score)


def added(booru: BooruServer, like: Post, number: int) -> Post:
    """A new post with a new picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (70, 60), (number % 256, 80, 90)).save(buffer, "PNG")
    content = buffer.getvalue()
    name = md5(content).hexdigest()
    created = like.created_at + timedelta(days=1)
    post = replace(like, id=number, md5=name, extension="png", bytes=len(content), flaw=None)
    booru.files[name] = content
    booru.posts[number] = replace(post, created_at=created)
    return post


def test_a_refresh_sees_what_changed_and_fetches_only_what_is_new(
    downloading, booru: BooruServer, corpus: Corpus
) -> None:
    downloading.write(booru.url)
    downloading.run()
    before, files = downloading.images(), booru.count("file")
    risen, rerated, deleted, vanished = sound(corpus)[:4]
    newest = corpus.posts[-1]
    booru.posts[risen.id] = scored(risen, risen.score + 100)
    booru.posts[rerated.id] = replace(rerated, rating="e")
    booru.posts[deleted.id] = replace(deleted, flaw="deleted")
    del booru.posts[vanished.id]
    fresh = added(booru, newest, newest.id + 5)

    assert downloading.run().already  # Without --refresh no one is asked.
    assert not downloading.run(refresh=True).already
    after = downloading.images()
    gone = {rerated.md5, deleted.md5, vanished.md5}
    assert set(after) == set(before) - gone | {fresh.md5}
    assert after[risen.md5].score == risen.score + 100
    # And what its host did not have is tried once more.
    (missing,) = [post.md5 for post in corpus.posts if post.flaw == "missing"]
    asked = [hit.name for hit in booru.hits if hit.kind == "file"][files:]
    assert sorted(asked) == sorted([fresh.md5, missing, missing])
    assert gone <= set(downloading.files())  # Left out, not thrown away.
    assert set(downloading.rows("SELECT post_id, score, rating, status FROM post_history")) == {
        (risen.id, risen.score, "general", "active"),
        (rerated.id, rerated.score, "general", "active"),
        (deleted.id, deleted.score, "general", "active"),
        (vanished.id, vanished.score, "general", "active"),
    }

    booru.posts[rerated.id] = rerated  # And back again, still without a file.
    for _ in range(3):
        downloading.run(refresh=True)
    assert set(downloading.images()) == set(after) | {rerated.md5}
    asked = [hit.name for hit in booru.hits if hit.kind == "file"][files:]
    assert sorted(asked) == sorted([fresh.md5, *[missing] * 4])  # But not for ever.


@pytest.mark.parametrize(
    "change", [{"flaw": "deleted"}, {"flaw": "hidden"}, {"rating": "e"}, {}], ids=str
)
def test_a_file_that_was_not_shown_comes_when_its_post_shows_it_again(
    downloading, serving: Callable[..., BooruServer], corpus: Corpus, change: dict[str, Any]
) -> None:
    """A moderator acts when it is first asked for; {}: its host does not have it yet."""
    post = sound(corpus)[-1]
    missing = True

    def moderate(hit: Hit) -> Fault | None:
        if hit.name != post.md5 or not missing:
            return None
        booru.posts[post.id] = replace(post, **change)
        return Fault(status=404)

    booru = serving(moderate)
    downloading.write(booru.url)
    downloading.run()
    assert set(downloading.images()) == corpus.wanted() - {post.md5}
    missing = False
    booru.posts[post.id] = post
    assert downloading.run().already
    downloading.run(refresh=True)
    assert set(downloading.images()) == corpus.wanted()


def test_posts_are_asked_for_in_batches(downloading, booru: BooruServer, corpus: Corpus) -> None:
    downloading.write(booru.url)
    downloading.run()
    pages = booru.count("page")
    known = len(downloading.rows("SELECT 1 FROM crawl_post"))
    downloading.run(refresh=True)
    asked = [hit.path for hit in booru.hits if hit.kind == "page"][pages:]
    above = [path for path in asked if "page=a" in path]
    by_id = [path for path in asked if "id%3A" in path]
    assert len(above) + len(by_id) == len(asked)
    # What the last three days showed is read anew, up to the empty page, the rest in one batch.
    assert len(above) <= 2 and len(by_id) == 1
    assert known < 200


def test_a_refresh_that_fails_goes_on(
    downloading, serving: Callable[..., BooruServer], corpus: Corpus
) -> None:
    failing = True

    def faults(hit):
        return Fault(status=401) if failing and "id%3A" in hit.path else None

    booru = serving(faults)
    downloading.write(booru.url)
    downloading.run()
    risen = sound(corpus)[0]
    booru.posts[risen.id] = scored(risen, 99)
    with pytest.raises(UrushiError):
        downloading.run(refresh=True)
    ((began,),) = downloading.rows("SELECT refreshing FROM crawl")
    assert began is not None
    failing = False
    downloading.run(refresh=True)
    assert downloading.images()[risen.md5].score == 99
    assert downloading.rows("SELECT refreshing FROM crawl") == [(None,)]


def test_a_replaced_file_is_fetched_and_the_old_one_left_out(
    downloading, booru: BooruServer, corpus: Corpus
) -> None:
    downloading.write(booru.url)
    downloading.run()
    old = sound(corpus)[0]
    other = added(booru, old, 1)
    booru.posts[old.id] = replace(other, id=old.id)
    del booru.posts[1]
    downloading.run(refresh=True)
    images = downloading.images()
    assert old.md5 not in images and images[other.md5].source == f"danbooru:{old.id}"
    assert downloading.rows("SELECT md5 FROM post_history") == [(old.md5,)]


def test_an_exclusion_counts_for_pictures_that_are_long_here(
    downloading, booru: BooruServer, corpus: Corpus, tmp_path: Path, told
) -> None:
    downloading.write(booru.url)
    downloading.run()
    requests, before = booru.count(), set(downloading.images())
    artist = sound(corpus)[0].tags["artist"][0]
    theirs = {p.md5 for p in corpus.posts if artist in p.tags["artist"]} & before
    (tmp_path / "do-not-train.txt").write_text(f"# asked us\n{artist}\n")
    exclude = {"files": ["do-not-train.txt"]}
    downloading.write(booru.url, exclude=exclude)
    assert not downloading.run(told).already
    assert set(downloading.images()) == before - theirs
    assert booru.count() == requests
    logged = downloading.rows("SELECT DISTINCT rule, origin FROM left_out")
    assert logged == [(f"artist {artist}", "do-not-train.txt, line 2")]
    assert any(f"excluded: artist {artist}" in line for line in told.lines)
    (tmp_path / "do-not-train.txt").write_text("# no one\n")
    downloading.run()
    assert set(downloading.images()) == before


def test_what_is_excluded_is_never_fetched(downloading, booru, corpus: Corpus) -> None:
    post = sound(corpus)[0]
    downloading.write(booru.url, exclude={"md5s": [post.md5]})
    downloading.run()
    assert post.md5 not in {hit.name for hit in booru.hits if hit.kind == "file"}
    assert set(downloading.images()) == corpus.wanted() - {post.md5}


def test_the_least_score_is_decided_again(downloading, booru, corpus: Corpus) -> None:
    scores = {p.md5: p.score for p in sound(corpus)}
    cut = sorted(scores.values())[len(scores) // 2]
    downloading.write(booru.url, least_score=cut)
    downloading.run()
    good = {md5 for md5, score in scores.items() if score >= cut}
    assert good <= set(downloading.images())
    assert all(record.score >= cut for record in downloading.images().values())
    risen = next(p for p in sound(corpus) if p.score < cut)
    booru.posts[risen.id] = scored(risen, cut)
    downloading.run(refresh=True)
    assert risen.md5 in downloading.images()


def test_equal_pixels_are_one_picture_with_the_tags_of_both(
    downloading, booru: BooruServer, corpus: Corpus
) -> None:
    first = next(p for p in sound(corpus) if p.extension == "png")
    with Image.open(io.BytesIO(corpus.files[first.md5])) as image:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", lossless=True, exact=True)
    content = buffer.getvalue()
    number = corpus.posts[-1].id + 1
    again = replace(
        first,
        id=number,
        md5=md5(content).hexdigest(),
        extension="webp",
        bytes=len(content),
        tags={**first.tags, "artist": ("someone_else",)},
    )
    booru.files[again.md5] = content
    booru.posts[number] = again
    downloading.write(booru.url)
    downloading.run()
    images = downloading.images()
    assert set(images) == corpus.wanted()
    assert {"someone_else", *first.tags["artist"]} == set(images[first.md5].tags["artist"])
    assert f"double: its pixels are those of {first.md5}" in downloading.reason(number)


@pytest.mark.parametrize(
    ("site", "family"),
    [
        ("gelbooru", "gelbooru"),
        ("safebooru", "gelbooru02"),
        ("tbib", "gelbooru02-json"),
        ("yandere", "moebooru"),
        ("e621", "e621"),
    ],
)
def test_each_family_is_refreshed(downloading, corpus: Corpus, site: str, family: Family) -> None:
    ratings = ["sensitive"] if site in ("yandere", "e621") else ["general"]
    with running(corpus=corpus, family=family) as booru:
        downloading.write(booru.url, site=site, ratings=ratings)
        downloading.run()
        before, files = downloading.images(), booru.count("file")
        risen, rerated, vanished = [p for p in sound(corpus) if p.md5 in before][:3]
        booru.posts[risen.id] = scored(risen, risen.score + 100)
        booru.posts[rerated.id] = replace(rerated, rating="e")
        del booru.posts[vanished.id]
        newest = corpus.posts[-1]
        fresh = added(booru, risen, newest.id + 5)
        downloading.run(refresh=True)
        after = downloading.images()
        assert set(after) == set(before) - {rerated.md5, vanished.md5} | {fresh.md5}
        assert after[risen.md5].score == before[risen.md5].score + 100
        again = [hit.name for hit in booru.hits if hit.kind == "file"][files:]
        assert set(again) & set(before) == set()
