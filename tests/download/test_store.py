"""posts.sqlite: what it keeps, what it remembers of changes, and stores of the first version."""

import json
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.download.header import Picture
from pipeline.download.likeness import Looks
from pipeline.download.posts import UNKNOWN, Post
from pipeline.download.store import Store
from pipeline.errors import UrushiError
from pipeline.size import Size

MakePost = Callable[..., Post]

VERSION_1 = """
CREATE TABLE post (
    site TEXT NOT NULL, post_id INTEGER NOT NULL, md5 TEXT, extension TEXT NOT NULL, bytes INTEGER,
    width INTEGER NOT NULL, height INTEGER NOT NULL, rating TEXT NOT NULL, score INTEGER,
    status TEXT NOT NULL, file_url TEXT, source_url TEXT NOT NULL, parent_id INTEGER,
    created_at TEXT NOT NULL, fetched_at TEXT NOT NULL, PRIMARY KEY (site, post_id)
) WITHOUT ROWID;
CREATE INDEX post_md5 ON post (md5);
CREATE TABLE post_raw (
    site TEXT NOT NULL, post_id INTEGER NOT NULL, json BLOB NOT NULL, PRIMARY KEY (site, post_id),
    FOREIGN KEY (site, post_id) REFERENCES post
);
CREATE TABLE tag (
    tag_id INTEGER PRIMARY KEY, site TEXT NOT NULL, name TEXT NOT NULL, category TEXT NOT NULL,
    UNIQUE (site, name)
);
CREATE TABLE post_tag (
    site TEXT NOT NULL, post_id INTEGER NOT NULL, position INTEGER NOT NULL,
    tag_id INTEGER NOT NULL REFERENCES tag, PRIMARY KEY (site, post_id, position),
    FOREIGN KEY (site, post_id) REFERENCES post
) WITHOUT ROWID;
CREATE INDEX post_tag_tag ON post_tag (tag_id);
CREATE TABLE job (
    md5 TEXT PRIMARY KEY, state TEXT NOT NULL, reason TEXT NOT NULL, attempts INTEGER NOT NULL,
    extension TEXT, bytes INTEGER, width INTEGER, height INTEGER, settled_at TEXT
) WITHOUT ROWID;
CREATE TABLE crawl (
    crawl_id INTEGER PRIMARY KEY, site TEXT NOT NULL, query TEXT NOT NULL, cursor INTEGER,
    finished INTEGER NOT NULL, estimate INTEGER, started_at TEXT NOT NULL, UNIQUE (site, query)
);
CREATE TABLE crawl_post (
    crawl_id INTEGER NOT NULL REFERENCES crawl, post_id INTEGER NOT NULL,
    PRIMARY KEY (crawl_id, post_id)
) WITHOUT ROWID;
PRAGMA user_version = 1;
PRAGMA application_id = 0x75727573;
"""
"""As the first version of the program wrote it."""


def shape(path: Path) -> dict[str, Any]:
    """Every table's columns, and the other things by name."""
    with closing(sqlite3.connect(path)) as db:
        things = db.execute("SELECT type, name FROM sqlite_master").fetchall()
        found: dict[str, Any] = {name: kind for kind, name in things}
        for kind, name in things:
            if kind == "table":
                found[name] = db.execute(f"PRAGMA table_info({name})").fetchall()
        return found | {"version": db.execute("PRAGMA user_version").fetchone()}


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "posts.sqlite", "danbooru") as store:
        yield store


def rows(store: Store, query: str) -> list[tuple[Any, ...]]:
    return store.db.execute(query).fetchall()


def test_a_store_of_version_1_becomes_one_of_today(tmp_path: Path, make_post: MakePost) -> None:
    path = tmp_path / "old.sqlite"
    raw = {"uploader_id": 12, "media_asset": {"pixel_hash": "ab" * 16, "duration": None}}
    moving = {"uploader_id": 13, "media_asset": {"duration": 0.8}}
    with closing(sqlite3.connect(path)) as db:
        db.executescript(VERSION_1)
        for number, said in ((1, raw), (2, moving), (3, {})):
            db.execute(
                "INSERT INTO post VALUES ('danbooru', ?, ?, 'png', 10, 64, 48, 'general', 5,"
                " 'active', '/x', 'https://www.pixiv.example/a', NULL, '', '2026-01-01')",
                (number, f"{number:032x}"),
            )
            packed = zlib.compress(json.dumps(said).encode())
            db.execute("INSERT INTO post_raw VALUES ('danbooru', ?, ?)", (number, packed))
        db.execute("INSERT INTO job VALUES (?, 'have', '', 0, 'png', 10, 64, 48, 'x')", ("0" * 32,))
        db.execute("INSERT INTO crawl VALUES (1, 'danbooru', 'cat', 1, 1, 3, '2026-01-01')")
        db.commit()
    with Store(path, "danbooru") as store:
        assert rows(
            store, "SELECT uploader, source_hosts, pixel_hash, animated FROM post ORDER BY post_id"
        ) == [
            ("12", "www.pixiv.example", "ab" * 16, 0),
            ("13", "www.pixiv.example", None, 1),
            ("", "www.pixiv.example", None, 0),
        ]
        crawl = store.crawl("cat")
        assert crawl is not None and (crawl.cursor, crawl.finished, crawl.estimate) == (1, True, 3)
        store.save_post(make_post(1, score=9))
        assert rows(store, "SELECT post_id, score FROM post_history") == [(1, 5)]
        assert rows(store, "SELECT state, examined_at FROM job") == [("have", None)]
    with Store(tmp_path / "new.sqlite", "danbooru"):
        pass
    assert shape(path) == shape(tmp_path / "new.sqlite")


def test_a_store_of_version_2_is_asked_for_its_artists(tmp_path: Path, make_post: MakePost) -> None:
    path = tmp_path / "old.sqlite"
    with Store(path, "danbooru") as store:
        today = shape(path)
        store.save_post(make_post(1))
        store.db.executescript(
            "DROP TABLE alias; DROP INDEX tag_unasked; ALTER TABLE tag DROP COLUMN aliases_at;"
            "PRAGMA user_version = 2;"
        )
    with Store(path, "danbooru") as store:
        assert shape(path) == today
        assert store.unasked_artists() == ["artist_1"]
        assert store.save_aliases(["artist_1"], [("once", "artist_1")])
        assert not store.unasked_artists()
        assert store.formers(["artist_1", "artist_2"]) == {"artist_1": ("once",)}


def test_a_migration_that_fails_leaves_the_old_store(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(VERSION_1)
        db.execute(
            "INSERT INTO post VALUES ('danbooru', 1, NULL, 'png', 1, 1, 1, 'general', 5, 'active',"
            " '', '', NULL, '', '')"
        )
        db.execute("INSERT INTO post_raw VALUES ('danbooru', 1, ?)", (b"no zlib",))
        db.commit()
    before = shape(path)
    with pytest.raises(zlib.error):
        Store(path, "danbooru")
    assert shape(path) == before


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "posts.sqlite"
    with Store(path, "danbooru") as store:
        store.db.execute("PRAGMA user_version = 99")
    with pytest.raises(UrushiError, match="schema 99"):
        Store(path, "danbooru")


def test_what_a_post_said_before_is_kept_where_it_changed(
    store: Store, make_post: MakePost
) -> None:
    post = make_post(1, score=5)
    for said in (
        post,
        post,
        replace(post, source_url="https://a.example"),
        replace(post, score=7),
        replace(post, score=7, rating="explicit"),
        replace(post, score=7, rating="explicit", md5="f" * 32),
        replace(post, score=None, rating="explicit", md5="f" * 32),
    ):
        store.save_post(said)
    store.mark_missing(1)
    store.mark_missing(1)
    old, replaced = f"{1:032x}", "f" * 32
    assert rows(
        store, "SELECT score, rating, status, md5 FROM post_history ORDER BY history_id"
    ) == [
        (5, "general", "active", old),
        (7, "general", "active", old),
        (7, "explicit", "active", old),
        (7, "explicit", "active", replaced),
        (None, "explicit", "active", replaced),
    ]


def test_pages_and_cursors_are_of_one_piece(store: Store, make_post: MakePost) -> None:
    posts = [make_post(n) for n in (9, 8)]
    crawl = store.begin_crawl("cat", 4, posts, cursor=8, finished=False)
    crawl = store.save_page(crawl, [make_post(6)], cursor=6, finished=False)
    bad = replace(make_post(5), rating=None)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        store.save_page(crawl, [make_post(4), bad], cursor=4, finished=True)
    assert store.crawl("cat") == crawl
    assert crawl.cursor == 6 and not crawl.finished
    assert rows(store, "SELECT post_id FROM crawl_post") == [(6,), (8,), (9,)]
    assert store.crawl("dog") is None


def test_categories_are_learnt_and_not_forgotten(store: Store, make_post: MakePost) -> None:
    doubtful = make_post(1, tags={UNKNOWN: ("cat", "someone")})
    assert not doubtful.tags_known
    store.save_post(doubtful)
    assert store.categories(["cat", "someone", "never_seen"]) == {}
    store.save_categories({"someone": "artist"})
    store.save_post(doubtful)
    assert store.categories(["cat", "someone"]) == {"someone": "artist"}
    store.save_post(make_post(2, tags={"copyright": ("someone",)}))
    assert store.categories(["someone"]) == {"someone": "copyright"}
    many = {f"tag{n}": "general" for n in range(1200)}
    store.save_categories(many)
    assert store.categories(many) == many


def test_a_file_that_comes_again_is_examined_again(store: Store) -> None:
    md5, picture = "0" * 32, Picture("png", Size(4, 3))
    store.attempted(md5, "cut off")
    store.have_all([(md5, picture, 10)])
    store.examined(md5, Looks("f" * 32, -5))
    whole = "SELECT state, reason, attempts, bytes, pixels, likeness FROM job"
    assert rows(store, whole) == [("have", "", 1, 10, "f" * 32, -5)]
    assert store.files() == [(md5, "png")]
    store.settle(md5, "planned", "it is not there")
    assert store.files() == []
    store.have(md5, picture, 10)
    assert rows(store, whole) == [("have", "", 1, 10, None, None)]


def test_a_refresh_knows_what_is_stale_until_its_end(store: Store, make_post: MakePost) -> None:
    crawl = store.begin_crawl("c", None, [make_post(n) for n in (3, 2, 1)], cursor=1, finished=True)
    store.db.execute("UPDATE post SET fetched_at = '2020-01-01T00:00:00+00:00'")
    since = store.begin_refresh(crawl)
    store.save_newer(crawl, [make_post(4), make_post(3)])
    assert store.stale(crawl, since) == [2, 1]
    store.save_again([make_post(2, score=8)], missing=[1])
    assert store.stale(crawl, since) == []
    assert rows(store, "SELECT post_id, score, status FROM post") == [
        (1, 0, "missing"),
        (2, 8, "active"),
        (3, 0, "active"),
        (4, 0, "active"),
    ]
    store.db.execute("UPDATE crawl SET refreshing = '2021-01-01T00:00:00+00:00'")
    assert store.begin_refresh(crawl) == "2021-01-01T00:00:00+00:00"  # A killed one goes on.
    store.end_refresh(crawl)
    assert store.begin_refresh(crawl) >= since
    assert store.crawl("c") == crawl
