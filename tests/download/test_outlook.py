"""What a download has before it, with the questions that are asked about tags."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.booru import BooruServer, running
from demo.booru_dialects import Family
from demo.corpus import Corpus
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.outlook import before_it_began, outlook
from pipeline.download.posts import Post
from pipeline.download.sites import dialect_of
from pipeline.download.store import Store
from pipeline.recipe import DatasetRecipe, load_dataset
from pipeline.recipe.dataset import Download

MakePost = Callable[..., Post]
RATINGS = {"danbooru": "general", "gelbooru": "general"}


def of(site: str) -> DatasetRecipe:
    rating: Any = RATINGS.get(site, "sensitive")
    asked = Download(site=site, tags="q", limit=1000, ratings=(rating,), requests_per_second=2)
    return DatasetRecipe(name="set", download=asked)


@pytest.mark.parametrize(
    ("site", "questions"),
    [
        # 120 artists in batches of 100, and of 880 posts to come as many more in nine.
        ("danbooru", 2 + 9),
        ("e621", 2 + 9),
        ("yandere", 1),  # It tells of all tags at once.
        # 360 tags of 120 posts: 300 in each of nine pages to come, a hundred a question.
        ("gelbooru", 9 * 3),
        ("safebooru", 9 * 3),
    ],
)
def test_as_many_questions_are_to_come_as_posts_so_far_needed(
    tmp_path: Path, make_post: MakePost, site: str, questions: int
) -> None:
    rating = RATINGS.get(site, "sensitive")
    posts = [make_post(number, rating=rating) for number in range(120, 0, -1)]
    asked = of(site).download
    assert asked is not None
    folder = DatasetFolder(tmp_path)
    with Store(folder.posts, site) as store:
        key = dialect_of(site).query(asked).key
        crawl = store.begin_crawl(key, None, posts, cursor=1, finished=False)
        store.save_categories({f"tag_{number}": "general" for number in range(239)})
    ahead = outlook(of(site), folder)
    assert ahead is not None
    assert (ahead.files, ahead.to_fetch, ahead.most_to_come) == (120, 120, 880)
    assert ahead.questions == questions
    assert ahead.seconds == (ahead.pages + 1000 + questions) / 2
    with Store(folder.posts, site) as store:
        store.save_aliases(store.unasked_artists(), [])
        store.save_page(crawl, [], cursor=1, finished=True)
    ahead = outlook(of(site), folder)
    assert ahead is not None and (ahead.questions, ahead.seconds) == (0, 60)


@pytest.mark.parametrize(("site", "family"), [("danbooru", "danbooru"), ("yandere", "moebooru")])
def test_what_is_foretold_of_known_artists_is_what_is_asked(
    downloading, corpus: Corpus, site: str, family: Family
) -> None:
    def asked(booru: BooruServer) -> int:
        return sum(hit.kind == "aliases" for hit in booru.hits)

    with running(corpus=corpus, family=family) as booru:
        downloading.write(booru.url, site=site, ratings=[RATINGS.get(site, "sensitive")])
        downloading.run()
        with Store(downloading.folder.posts, site) as store:
            store.db.execute("UPDATE tag SET aliases_at = NULL")
        ahead = outlook(load_dataset(downloading.recipe), downloading.folder)
        before = asked(booru)
        (downloading.folder.images / "receipt.json").unlink()
        downloading.run()
        assert ahead is not None and ahead.questions == asked(booru) - before == 1


@pytest.mark.parametrize(
    ("site", "pages", "names", "kinds"),
    [
        ("danbooru", 5, 10, False),
        ("e621", 4, 10, False),
        ("yandere", 10, 1, False),
        ("gelbooru", 10, 0, True),
    ],
)
def test_before_anything_is_known_each_picture_may_be_by_another_artist(
    site: str, pages: int, names: int, kinds: bool
) -> None:
    unknown = before_it_began(of(site))
    assert unknown.seconds == (1000 + pages) / 2
    assert (unknown.former_names, unknown.asks_kinds) == (names / 2, kinds)
