"""posts.sqlite: the facts about posts, what became of files, and how far a search has been read.

Each method is one transaction, so that a killed process leaves either all of it or nothing.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.download.database import Database
from pipeline.download.header import Picture
from pipeline.download.likeness import Looks
from pipeline.download.moments import now
from pipeline.download.posts import UNKNOWN, Post
from pipeline.download.schema import source_hosts

State = Literal["planned", "have", "gone", "hidden", "refused", "bad_content", "failed"]
"""have: verified and on disk. gone: the site has it no longer. hidden: the site shows it to others.
refused: it may not be used. bad_content: no picture, or not the one that was promised. failed: it
could not be fetched now, and is tried again by the next run."""


NEWEST = 5_000
"""Posts among which a refresh looks for the ones of the last days."""
BATCH = 500
"""Names in one question to SQLite, which takes no more than some ten thousand."""


@dataclass(frozen=True)
class Crawl:
    """How far a search has been read."""

    id: int
    cursor: int | None
    finished: bool
    estimate: int | None


@dataclass(frozen=True)
class Met:
    """How many different ones a store has met, of all searches together."""

    posts: int
    tags: int
    artists: int


class Store(Database):
    """An open posts.sqlite. Used by one thread, under the lock of its dataset's folder."""

    def __init__(self, path: Path, site: str) -> None:
        super().__init__(path)
        self.site = site

    def crawl(self, query: str) -> Crawl | None:
        """How far `query` has been read, or None where it was never begun."""
        with self.errors():
            row = self.db.execute(
                "SELECT crawl_id, cursor, finished, estimate FROM crawl"
                " WHERE site = ? AND query = ?",
                (self.site, query),
            ).fetchone()
        return None if row is None else Crawl(row[0], row[1], bool(row[2]), row[3])

    def begin_crawl(
        self,
        query: str,
        estimate: int | None,
        posts: Sequence[Post],
        *,
        cursor: int | None,
        finished: bool,
    ) -> Crawl:
        """A crawl of `query` with what its first page showed; it goes on below `cursor`."""
        with self.transaction():
            row = self.db.execute(
                "INSERT INTO crawl (site, query, finished, estimate, started_at)"
                " VALUES (?, ?, 0, ?, ?) RETURNING crawl_id",
                (self.site, query, estimate, now()),
            ).fetchone()
            return self._put_page(Crawl(row[0], cursor, finished, estimate), posts)

    def save_page(
        self, crawl: Crawl, posts: Sequence[Post], *, cursor: int | None, finished: bool
    ) -> Crawl:
        """A page's posts and the cursor behind them; `finished`: there are no more."""
        with self.transaction():
            return self._put_page(replace(crawl, cursor=cursor, finished=finished), posts)

    def save_newer(self, crawl: Crawl, posts: Sequence[Post]) -> None:
        """Posts that a search shows above those it has been read to; the cursor stays."""
        with self.transaction():
            self._put_page(crawl, posts)

    def save_post(self, post: Post) -> None:
        """A post that was asked for again."""
        with self.transaction():
            self._put(post)

    def save_again(self, posts: Sequence[Post], missing: Iterable[int]) -> None:
        """Posts that were asked for again, and the ids that the site no longer knows."""
        with self.transaction():
            for post in posts:
                self._put(post)
            self._mark_missing(missing)

    def begin_refresh(self, crawl: Crawl) -> str:
        """When the refresh of a crawl began that has not come to its end: now, or an earlier run's.

        Posts that were fetched at or after it are up to date.
        """
        with self.transaction():
            row = self.db.execute(
                "UPDATE crawl SET refreshing = coalesce(refreshing, ?) WHERE crawl_id = ?"
                " RETURNING refreshing",
                (now(), crawl.id),
            ).fetchone()
        return str(row[0])

    def end_refresh(self, crawl: Crawl) -> None:
        """Every post of the crawl has been asked for again."""
        with self.transaction():
            self.db.execute("UPDATE crawl SET refreshing = NULL WHERE crawl_id = ?", (crawl.id,))

    def stale(self, crawl: Crawl, since: str) -> list[int]:
        """The ids of a crawl's posts that were last fetched before `since`, the newest first."""
        with self.errors():
            rows = self.db.execute(
                "SELECT c.post_id FROM crawl_post c JOIN post p ON p.site = ?"
                " AND p.post_id = c.post_id WHERE c.crawl_id = ? AND p.fetched_at < ?"
                " ORDER BY c.post_id DESC",
                (self.site, crawl.id, since),
            ).fetchall()
        return [row[0] for row in rows]

    def newest(self, crawl: Crawl) -> list[tuple[int, str]]:
        """(id, created_at) of the newest posts of a crawl, some days' worth on most searches."""
        with self.errors():
            return self.db.execute(
                "SELECT c.post_id, p.created_at FROM crawl_post c JOIN post p ON p.site = ?"
                " AND p.post_id = c.post_id WHERE c.crawl_id = ? ORDER BY c.post_id DESC LIMIT ?",
                (self.site, crawl.id, NEWEST),
            ).fetchall()

    def categories(self, names: Iterable[str]) -> dict[str, str]:
        """The category of each of these tags, where it is known."""
        found: dict[str, str] = {}
        names = list(names)
        with self.errors():
            for start in range(0, len(names), BATCH):
                some = names[start : start + BATCH]
                marks = ", ".join("?" for _ in some)
                found |= self.db.execute(
                    f"SELECT name, category FROM tag WHERE site = ? AND name IN ({marks})"
                    " AND category <> ?",
                    (self.site, *some, UNKNOWN),
                ).fetchall()
        return found

    def save_categories(self, categories: Mapping[str, str]) -> None:
        """What the site says of tags; it also tells posts that were read with them in doubt."""
        with self.transaction():
            self._put_tags([(name, category) for name, category in categories.items()])

    def met(self) -> Met:
        """What all the posts that were read have brought."""
        with self.errors():
            row = self.db.execute(
                "SELECT (SELECT count(*) FROM post WHERE site = ?1), count(*),"
                " count(*) FILTER (WHERE category = 'artist') FROM tag WHERE site = ?1",
                (self.site,),
            ).fetchone()
        return Met(*row)

    def unasked_artists(self, before: str = "") -> list[str]:
        """Artists' tags of which it was not asked, since `before`, what they were called."""
        with self.errors():
            rows = self.db.execute(
                "SELECT name FROM tag WHERE site = ? AND category = 'artist'"
                " AND (aliases_at IS NULL OR aliases_at < ?) ORDER BY name"
                if before
                else "SELECT name FROM tag WHERE site = ? AND category = 'artist'"
                " AND aliases_at IS NULL ORDER BY name",
                (self.site, before) if before else (self.site,),
            ).fetchall()
        return [row[0] for row in rows]

    def save_aliases(self, names: Sequence[str], aliases: Iterable[tuple[str, str]]) -> bool:
        """All that the site tells of `names`: (former name, name). Returns whether one is new."""
        rows = [(self.site, name, former) for former, name in aliases]
        with self.transaction():
            known: set[tuple[str, str, str]] = set()
            for name in names:
                known.update(
                    self.db.execute(
                        "DELETE FROM alias WHERE site = ? AND name = ?"
                        " RETURNING site, name, former",
                        (self.site, name),
                    ).fetchall()
                )
            self.db.executemany("INSERT OR IGNORE INTO alias VALUES (?, ?, ?)", rows)
            self.db.executemany(
                "UPDATE tag SET aliases_at = ? WHERE site = ? AND name = ?",
                [(now(), self.site, name) for name in names],
            )
        return not known.issuperset(rows)

    def formers(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """What those of these artists who were called otherwise were called, by their names."""
        wanted = set(names)
        found: dict[str, tuple[str, ...]] = {}
        with self.errors():
            # All of them, for there are fewer than artists.
            for name, former in self.db.execute(
                "SELECT name, former FROM alias WHERE site = ? ORDER BY name, former", (self.site,)
            ):
                if name in wanted:
                    found[name] = (*found.get(name, ()), former)
        return found

    def mark_missing(self, post_id: int) -> None:
        """The site no longer knows this post."""
        with self.transaction():
            self._mark_missing([post_id])

    def files(self) -> list[tuple[str, str]]:
        """(md5, extension) of every file that is here."""
        with self.errors():
            return self.db.execute(
                "SELECT md5, extension FROM job WHERE state = 'have' ORDER BY md5"
            ).fetchall()

    def have(self, md5: str, picture: Picture, size_bytes: int) -> None:
        """The file is on disk under its name, and verified."""
        self.have_all([(md5, picture, size_bytes)])

    def have_all(self, landed: Iterable[tuple[str, Picture, int]]) -> None:
        """The same of several files: md5, what its header says, and its size in bytes."""
        with self.transaction():
            for md5, picture, size_bytes in landed:
                self._settle(md5, "have", "", (picture.extension, size_bytes, *picture.size))

    def settle(self, md5: str, state: State, reason: str) -> None:
        """What became of a file that is not here, or that it is to be fetched after all."""
        with self.transaction():
            self._settle(md5, state, reason, (None, None, None, None))

    def examined(self, md5: str, looks: Looks) -> None:
        """The file decodes to its last row, and how it looks."""
        with self.transaction():
            self.db.execute(
                "UPDATE job SET pixels = ?, likeness = ?, examined_at = ? WHERE md5 = ?",
                (looks.pixels, looks.likeness, now(), md5),
            )

    def attempted(self, md5: str, reason: str) -> None:
        """A request for the file that did not end in it."""
        with self.transaction():
            self.db.execute(
                "INSERT INTO job (md5, state, reason, attempts) VALUES (?, 'planned', ?, 1)"
                " ON CONFLICT DO UPDATE SET attempts = attempts + 1, reason = excluded.reason",
                (md5, reason),
            )

    def _settle(
        self, md5: str, state: State, reason: str, found: tuple[str | int | None, ...]
    ) -> None:
        self.db.execute(
            "INSERT INTO job (md5, state, reason, attempts, extension, bytes, width, height,"
            " settled_at) VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?) ON CONFLICT (md5) DO UPDATE SET"
            " state = excluded.state, reason = excluded.reason, extension = excluded.extension,"
            " bytes = excluded.bytes, width = excluded.width, height = excluded.height,"
            " settled_at = excluded.settled_at, pixels = NULL, likeness = NULL, examined_at = NULL",
            (md5, state, reason, *found, now()),
        )

    def _mark_missing(self, post_ids: Iterable[int]) -> None:
        self.db.executemany(
            "UPDATE post SET status = 'missing', fetched_at = ? WHERE site = ? AND post_id = ?",
            [(now(), self.site, post_id) for post_id in post_ids],
        )

    def _put_page(self, after: Crawl, posts: Sequence[Post]) -> Crawl:
        for post in posts:
            self._put(post)
        self.db.executemany(
            "INSERT OR IGNORE INTO crawl_post VALUES (?, ?)",
            [(after.id, post.id) for post in posts],
        )
        self.db.execute(
            "UPDATE crawl SET cursor = ?, finished = ? WHERE crawl_id = ?",
            (after.cursor, after.finished, after.id),
        )
        return after

    def _put(self, post: Post) -> None:
        key = (self.site, post.id)
        self.db.execute(
            "INSERT INTO post VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE"
            " SET md5 = excluded.md5, extension = excluded.extension, bytes = excluded.bytes,"
            " width = excluded.width, height = excluded.height, rating = excluded.rating,"
            " score = excluded.score, status = excluded.status, file_url = excluded.file_url,"
            " source_url = excluded.source_url, parent_id = excluded.parent_id,"
            " fetched_at = excluded.fetched_at, uploader = excluded.uploader,"
            " source_hosts = excluded.source_hosts, pixel_hash = excluded.pixel_hash,"
            " animated = excluded.animated",
            (
                *key,
                post.md5,
                post.extension,
                post.bytes,
                *post.size,
                post.rating,
                post.score,
                post.status,
                post.file_url,
                post.source_url,
                post.parent_id,
                post.created_at,
                now(),
                post.uploader.lower(),
                source_hosts(post.source_url),
                post.pixel_hash,
                post.animated,
            ),
        )
        self.db.execute(
            "INSERT INTO post_raw VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET json = excluded.json",
            (*key, zlib.compress(post.raw.encode())),
        )
        self.db.execute("DELETE FROM post_tag WHERE site = ? AND post_id = ?", key)
        named = [(name, category) for category, names in post.tags.items() for name in names]
        self._put_tags(named)
        self.db.executemany(
            "INSERT INTO post_tag SELECT ?, ?, ?, tag_id FROM tag WHERE site = ? AND name = ?",
            [(*key, place, self.site, name) for place, (name, _) in enumerate(named)],
        )

    def _put_tags(self, named: Iterable[tuple[str, str]]) -> None:
        """A name that is in doubt again keeps the category that was once known."""
        self.db.executemany(
            "INSERT INTO tag (site, name, category) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET category = excluded.category"
            f" WHERE category <> excluded.category AND excluded.category <> '{UNKNOWN}'",
            [(self.site, name, category) for name, category in named],
        )
