"""The same pictures in each family's words: over the wire, from a booru that speaks it."""

import re
from contextlib import AbstractContextManager
from xml.etree import ElementTree

import pytest

from demo.booru import BooruServer, running
from demo.booru_dialects import Family
from demo.booru_faults import Fault, Hit
from demo.corpus import ARTISTS, Corpus, Post
from pipeline.download.gelbooru import Gelbooru
from pipeline.download.posts import Malformed
from pipeline.download.sites import DIALECTS, dialect_of
from pipeline.errors import RequestError, UrushiError
from pipeline.recipe.dataset import Download

SITES: dict[str, Family] = {
    "danbooru": "danbooru",
    "gelbooru": "gelbooru",
    "safebooru": "gelbooru02",
    "tbib": "gelbooru02-json",
    "yandere": "moebooru",
    "e621": "e621",
}
"""One of each family."""
MILD = {"yandere": ["sensitive"], "e621": ["sensitive"]}
"""Where there is no rating "general"."""
SHORT = 7
"""Posts to a page, so that there are several."""


def speaking(
    site: str, corpus: Corpus, faults=lambda hit: None
) -> AbstractContextManager[BooruServer]:
    return running(corpus=corpus, faults=faults, family=SITES[site])


def expected(site: str, corpus: Corpus) -> set[str]:
    """The md5s that a download of the site should bring."""
    milder = {p.md5: p.rating for p in corpus.posts if p.rating == "s"}
    sound = {p.md5 for p in corpus.posts if p.flaw is None or p.flaw == "double"}
    more = sound & set(milder) if site in MILD else set()
    return corpus.wanted() | more


@pytest.fixture
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("danbooru", "gelbooru", "gelbooru02", "moebooru", "e621"):
        monkeypatch.setattr(f"pipeline.download.{module}.PER_PAGE", SHORT)


@pytest.mark.parametrize("site", SITES)
def test_each_family_brings_the_same_pictures(
    downloading, corpus: Corpus, site: str, short_pages: None
) -> None:
    with speaking(site, corpus) as booru:
        downloading.write(booru.url, site=site, ratings=MILD.get(site, ["general"]))
        downloading.run()
        assert set(downloading.images()) == expected(site, corpus) == set(downloading.files())
        pages = [hit for hit in booru.hits if hit.kind == "page"]
        assert len(pages) > len(corpus.posts) / SHORT / 2
        assert not any(re.search(r"[?&](page=\d|pid=)", hit.path) for hit in pages)
        images = downloading.images()
        posts = {post.md5: post for post in corpus.posts if post.flaw != "double"}
        for md5, image in images.items():
            if md5 in posts:
                assert set(image.tags["artist"]) >= set(posts[md5].tags["artist"])
            assert not any(
                set(names) & set(ARTISTS) for kind, names in image.tags.items() if kind != "artist"
            )
            assert image.source.startswith(f"{site}:")
            assert image.created_at.startswith("2025-")
        before = booru.count()
        (downloading.folder.images / "receipt.json").unlink()
        downloading.run()
        assert booru.count() == before


@pytest.mark.parametrize("site", ["gelbooru", "safebooru", "yandere"])
def test_a_picture_whose_artist_cannot_be_told_is_left_out(
    downloading, corpus: Corpus, site: str
) -> None:
    hidden = ARTISTS[1]
    with speaking(site, corpus) as booru:
        booru.untold = {hidden}
        downloading.write(booru.url, site=site, ratings=MILD.get(site, ["general"]))
        downloading.run()
        theirs = {p.md5 for p in corpus.posts if hidden in p.tags["artist"]}
        assert theirs & expected(site, corpus)
        assert not theirs & set(downloading.images())
        assert expected(site, corpus) - theirs == set(downloading.images())
        assert any("kinds of its tags" in failure.reason for failure in downloading.failures())


def test_categories_are_asked_for_once_and_a_hundred_at_most(
    downloading, corpus: Corpus, short_pages: None
) -> None:
    with speaking("gelbooru", corpus) as booru:
        downloading.write(booru.url, site="gelbooru")
        downloading.run()
        asked = [hit for hit in booru.hits if hit.kind == "tags"]
        names = [re.search("names=([^&]*)", hit.path)[1].split("+") for hit in asked]
        assert len({name for batch in names for name in batch}) == sum(map(len, names))
        assert max(map(len, names)) <= 100


@pytest.mark.parametrize("site", ["gelbooru", "safebooru"])
def test_an_empty_page_in_the_middle_is_not_the_end(
    downloading, corpus: Corpus, site: str, short_pages: None
) -> None:
    empty = b'{"@attributes":{"count":0}}' if site == "gelbooru" else b"<posts></posts>"
    blank = {"left": 1}

    def once(hit: Hit) -> Fault | None:
        if hit.kind == "page" and "id%3A%3C" in hit.path and blank["left"]:
            blank["left"] -= 1
            return Fault(body=empty)
        return None

    with speaking(site, corpus, once) as booru:
        downloading.write(booru.url, site=site)
        downloading.run()
        assert not blank["left"]
        assert set(downloading.images()) == expected(site, corpus)


def test_an_error_that_comes_with_status_200_is_an_error(downloading, corpus: Corpus) -> None:
    told = b'<response success="false" reason="Search error: API disabled due to abuse."/>'
    with speaking("gelbooru", corpus, lambda hit: Fault(body=told)) as booru:
        downloading.write(booru.url, site="gelbooru")
        with pytest.raises(UrushiError, match="API disabled due to abuse"):
            downloading.run()
        assert booru.count() == 1


def test_more_tags_than_a_visitor_may_ask_for_are_sifted_here(downloading, corpus: Corpus) -> None:
    with running(corpus=corpus) as booru:
        downloading.write(booru.url, tags="maki-e_box 1figure lacquer_* -highres")
        downloading.run()
        assert all(len(_paid(hit)) == 2 for hit in booru.hits if hit.kind == "page")
    tagged = {
        post.md5: {tag for names in post.tags.values() for tag in names} for post in corpus.posts
    }
    listed = {md5 for md5 in corpus.wanted() if "1figure" in tagged[md5]}
    wanted = {
        m for m in listed if {"lacquer_background"} <= tagged[m] and "highres" not in tagged[m]
    }
    assert 0 < len(wanted) < len(listed)
    assert set(downloading.images()) == wanted


def _paid(hit: Hit) -> list[str]:
    return [term for term in hit.name.split() if ":" not in term]


def test_what_only_the_site_can_decide_is_not_left_to_us() -> None:
    asked = Download(site="danbooru", tags="source:pixiv user:me ~a")
    with pytest.raises(RequestError, match="cannot be sifted here"):
        dialect_of("danbooru").query(asked)


@pytest.mark.parametrize("site", ["yandere", "konachan", "e621", "e926"])
def test_safe_is_not_general(site: str) -> None:
    with pytest.raises(RequestError, match="sensitive"):
        dialect_of(site).query(Download(site=site, tags="a"))
    dialect_of(site).query(Download(site=site, tags="a", ratings=("sensitive",)))


@pytest.mark.parametrize(
    ("site", "ratings", "terms"),
    [
        ("gelbooru", ("general",), "a rating:general"),
        ("gelbooru", ("general", "sensitive"), "a -rating:questionable -rating:explicit"),
        ("yandere", ("sensitive", "questionable"), "a -rating:e"),
        ("yandere", ("sensitive", "questionable", "explicit"), "a"),
        ("e621", ("general", "sensitive"), "a rating:s"),
    ],
)
def test_ratings_in_each_sites_words(site: str, ratings: tuple, terms: str) -> None:
    assert dialect_of(site).query(Download(site=site, tags="a", ratings=ratings)).text == terms


def test_a_search_that_takes_too_long_is_asked_in_parts(
    downloading, corpus: Corpus, short_pages: None, monkeypatch
) -> None:
    """The site answers for at most 300 ids at once."""
    monkeypatch.setattr("pipeline.download.crawl.FIRST_SPAN", 4096)
    monkeypatch.setattr("pipeline.download.crawl.LEAST_SPAN", 16)
    slow = b'{"success":false,"error":"X","message":"The database timed out running your query."}'

    def tired(hit: Hit) -> Fault | None:
        if hit.kind != "page" or "maki-e_box" not in hit.name:
            return None
        low = re.search(r"id:>=(\d+)", hit.name)
        high = re.search(r"page=b(\d+)", hit.path)
        if low and high and int(high[1]) - int(low[1]) <= 300:
            return None
        return Fault(status=500, body=slow)

    with running(corpus=corpus, faults=tired) as booru:
        # Lower numbers, so that the walk to the first id ends.
        booru.posts = {i - 6_999_000: _renumbered(p) for i, p in booru.posts.items()}
        downloading.write(booru.url)
        downloading.run()
        assert set(downloading.images()) == corpus.wanted()
        assert booru.count("page") < 80


def _renumbered(post: Post) -> Post:
    from dataclasses import replace

    return replace(post, id=post.id - 6_999_000)


def test_odd_values_are_read_or_not_there() -> None:
    gelbooru = dialect_of("gelbooru")
    item = {"id": "7", "md5": "0" * 32, "image": "x.jpeg", "rating": "safe", "score": None}
    item |= {"tags": "a_&#039;b&#039; c", "width": "10", "height": 20, "parent_id": 0}
    item |= {"created_at": "Sat Nov 04 15:04:00 -0500 2025"}
    [post] = gelbooru.read_page({"@attributes": {}, "post": item})
    assert (post.id, post.extension, post.rating, post.score) == (7, "jpg", "sensitive", None)
    assert (post.size, post.parent_id, post.bytes) == ((10, 20), None, None)
    assert post.created_at == "2025-11-04T15:04:00-05:00"
    assert post.tags == {"unknown": ("a_'b'", "c")}
    assert not post.tags_known
    assert gelbooru.read_page({"@attributes": {"count": 0}}) == []
    for broken in ([], None, {"post": 3}, {"post": [{"id": 0}]}, "x", {"posts": []}):
        with pytest.raises(Malformed):
            gelbooru.read_page(broken)
    root = ElementTree.fromstring("<posts><post id='3' md5='" + "A" * 32 + "' tags='x'/></posts>")
    [post] = dialect_of("safebooru").read_page(root)
    assert (post.id, post.md5) == (3, "a" * 32)
    with pytest.raises(Malformed):
        dialect_of("safebooru").read_page(ElementTree.fromstring("<html/>"))


def test_a_category_that_is_new_to_us_may_hold_names() -> None:
    post = {"id": 1, "file": {"url": None, "md5": "0" * 32}, "score": {}, "flags": {}}
    tags = {"artist": ["conditional_dnp", "a"], "patron": ["b"], "species": ["c"]}
    read = dialect_of("e621").read_post({"post": post | {"tags": tags}})
    assert read.tags == {
        "meta": ("conditional_dnp",),
        "artist": ("a",),
        "unknown": ("b",),
        "general": ("c",),
    }
    assert (read.md5, read.tags_known) == (None, False)  # The address is not shown, nor made up.


def test_every_site_has_its_own_word_and_an_address_within_its_domains() -> None:
    assert len({d.site for d in DIALECTS}) == len(DIALECTS)
    for dialect in DIALECTS:
        host = dialect.address.removeprefix("https://")
        assert any(host == d or host.endswith(f".{d}") for d in dialect.domains)
        assert dialect.most_per_second <= 10
    assert isinstance(dialect_of("gelbooru"), Gelbooru)
    with pytest.raises(RequestError, match="Did you mean 'yandere'"):
        dialect_of("yander")
