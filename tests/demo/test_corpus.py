"""The corpus is what its seed says, and holds every trouble that a downloader must meet."""

import hashlib
import io
from collections import Counter

import pytest
from PIL import Image

from demo.corpus import ARTISTS, IMITATED, IMITATION, Corpus, generate


def test_the_seed_names_the_corpus() -> None:
    first, again, other = generate(1, 40), generate(1, 40), generate(2, 40)
    assert first == again
    assert not set(first.files) & set(other.files)


def test_of_four_hundred_posts_about_three_hundred_general_pictures_remain(
    corpus: Corpus,
) -> None:
    assert 0.72 <= len(corpus.wanted()) / len(corpus.posts) <= 0.82
    assert corpus.wanted() < corpus.wanted(("general", "sensitive", "questionable", "explicit"))


def test_ids_rise_and_are_unique(corpus: Corpus) -> None:
    ids = [post.id for post in corpus.posts]
    assert ids == sorted(set(ids))


def test_scores_lie_on_all_sides_of_the_cuts(corpus: Corpus) -> None:
    scores = [post.score for post in corpus.posts if post.md5 in corpus.wanted()]
    assert min(scores) < 0 and max(scores) > 500
    bands = Counter((s >= 6) + (s >= 18) + (s >= 60) for s in scores)
    assert all(bands[band] >= 10 for band in range(4))
    assert all(post.down_score <= 0 for post in corpus.posts)


def test_every_flaw_and_rating_occurs(corpus: Corpus) -> None:
    flaws = Counter(post.flaw for post in corpus.posts)
    assert set(flaws) >= {"deleted", "hidden", "double", "mismatch", "truncated", "missing"}
    assert {post.rating for post in corpus.posts} == set("gsqe")
    doubles = Counter(post.md5 for post in corpus.posts)
    assert any(count > 1 for count in doubles.values())


def test_wanted_files_are_sound_and_broken_ones_broken(corpus: Corpus) -> None:
    for md5 in corpus.wanted():
        assert hashlib.md5(corpus.files[md5]).hexdigest() == md5
    for post in corpus.posts:
        served = corpus.files.get(post.md5)
        if post.flaw == "missing":
            assert served is None
        elif post.flaw == "mismatch":
            assert served and hashlib.md5(served).hexdigest() != post.md5
        elif post.flaw == "truncated":
            assert served and hashlib.md5(served).hexdigest() == post.md5
            with pytest.raises((OSError, SyntaxError)):
                Image.open(io.BytesIO(served)).load()


def test_pictures_have_the_size_and_type_that_posts_state(corpus: Corpus) -> None:
    kinds = Counter()
    ratios = set()
    for post in corpus.posts:
        if post.md5 in corpus.wanted():
            with Image.open(io.BytesIO(corpus.files[post.md5])) as image:
                assert image.size == tuple(post.size)
                assert image.format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[post.extension]
            assert len(corpus.files[post.md5]) == post.bytes
            kinds[post.extension] += 1
            ratios.add(round(post.size.ratio, 2))
    assert min(kinds.values()) > 12
    assert ratios >= {0.67, 0.8, 1.0, 1.25, 1.5}


def test_artists_are_traps_for_stripping_by_substring(corpus: Corpus) -> None:
    general = {tag for post in corpus.posts for tag in post.tags["general"]}
    assert IMITATED in ARTISTS and IMITATION in general and IMITATED in IMITATION
    words = {word for tag in general for word in tag.split("_")}
    assert any(set(artist.split("_")) & words for artist in ARTISTS if artist != IMITATED)
    assert not set(ARTISTS) & general


def test_robots_and_cats_are_characters(corpus: Corpus) -> None:
    for post in corpus.posts:
        shown = {tag.rpartition("_")[2] for tag in post.tags["general"]}
        named = set(post.tags["character"])
        assert ("karakuri_(maki-e)" in named) == ("robot" in shown)
        assert ("tama_(maki-e)" in named) == ("cat" in shown)
        assert post.tags["copyright"] == ("maki-e_box",)
