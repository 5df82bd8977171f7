"""--retry: every file that did not come is tried once more, and nothing else is asked for."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from demo.booru import BooruServer
from demo.booru_faults import Fault
from demo.corpus import Corpus, Post
from pipeline.errors import UrushiError


def sound(corpus: Corpus) -> list[Post]:
    """Posts whose files come, one post each."""
    doubles = {post.md5 for post in corpus.posts if post.flaw == "double"}
    return [p for p in corpus.posts if p.md5 in corpus.wanted() and p.md5 not in doubles]


KEPT_AWAY = {
    "failed": lambda other: Fault(status=500),
    "gone": lambda other: Fault(status=404),
    "hidden": lambda other: Fault(status=403),
    "refused": lambda other: Fault(headers={"X-Robots-Tag": "noai"}),
    "bad_content: it is shorter": lambda other: Fault(body=b"x"),
    "bad_content: stable mismatch": lambda other: Fault(body=other),
}
"""What becomes of a file: by which fault of every answer with it."""


def test_what_was_kept_away_comes_when_it_can(
    downloading, serving: Callable[..., BooruServer], corpus: Corpus
) -> None:
    posts = sorted(sound(corpus), key=lambda post: post.bytes)
    other = corpus.files[posts[0].md5]
    faults = {
        post.md5: make(other.ljust(post.bytes, b"\0"))
        for post, make in zip(reversed(posts), KEPT_AWAY.values(), strict=False)
    }
    booru = serving(lambda hit: faults.get(hit.name))
    downloading.write(booru.url)
    downloading.run()
    reasons = {failure.md5: failure.reason for failure in downloading.failures()}
    for md5, state in zip(list(faults), KEPT_AWAY, strict=True):
        assert f" {state}" in reasons[md5]
    lost = {failure.md5 for failure in downloading.failures() if failure.md5}
    before = booru.count()
    assert downloading.run().already and booru.count() == before

    faults.clear()
    assert not downloading.run(retry=True).already
    asked = booru.hits[before:]
    assert {hit.name for hit in asked if hit.kind == "file"} == lost
    assert {hit.kind for hit in asked} <= {"file", "post"}
    assert set(downloading.images()) == corpus.wanted() == set(downloading.files())
    assert {f.md5 for f in downloading.failures() if f.md5} == lost - corpus.wanted()
    assert not [
        p
        for p in downloading.folder.quarantine.glob("*")
        if p.name[:32] in reasons and p.name[:32] in corpus.wanted()
    ]
    assert downloading.run().already


def test_a_retry_that_fails_takes_nothing_away_and_goes_on(
    downloading, serving: Callable[..., BooruServer], corpus: Corpus
) -> None:
    away = {post.md5 for post in sound(corpus)[:8]}
    status = [404]
    booru = serving(lambda hit: Fault(status=status[0]) if hit.name in away and status[0] else None)
    downloading.write(booru.url)
    downloading.run()
    before = downloading.images()
    assert set(before) == corpus.wanted() - away
    status[0] = 500
    with pytest.raises(UrushiError, match="5 files in a row"):
        downloading.run(retry=True)
    assert downloading.run().already and downloading.images() == before
    status[0] = 0
    downloading.run(retry=True)
    assert set(downloading.images()) == corpus.wanted() == set(downloading.files())


def test_a_retry_of_what_never_began_is_a_download(
    downloading, booru: BooruServer, corpus: Corpus
) -> None:
    downloading.write(booru.url)
    downloading.run(retry=True)
    assert set(downloading.images()) == corpus.wanted()


def test_a_folder_is_looked_at_again(downloading, tmp_path: Path) -> None:
    """A file may be mended without a sign of it: of as many bytes, and of the same time."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.new("RGB", (30, 20), (90 * number, 0, 0)).save(pictures / f"{number}.png")
    mended = pictures / "1.png"
    content = mended.read_bytes()
    mended.write_bytes(bytes(len(content)))
    os.utime(mended, (1e9, 1e9))
    downloading.write_folder(pictures)
    downloading.run()
    assert len(downloading.images()) == 2
    mended.write_bytes(content)
    os.utime(mended, (1e9, 1e9))
    assert downloading.run().already
    assert not downloading.run(retry=True).already
    assert hashlib.md5(content).hexdigest() in downloading.images()
    assert downloading.failures() == []
