"""posts.sqlite: the facts about posts, what became of files, and how far a search has been read.

Each method is one transaction, so that a killed process leaves either all of it or nothing.
"""

import errno
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pipeline.artefacts.files import translated
from pipeline.download.content import EXTENSIONS, Picture
from pipeline.download.posts import UNAVAILABLE, Post
from pipeline.download.schema import connect
from pipeline.errors import UrushiError
from pipeline.recipe.size import Size

State = Literal["planned", "have", "gone", "hidden", "refused", "bad_content", "failed"]
"""have: verified and on disk. gone: the site has it no longer. hidden: the site shows it to others.
refused: it may not be used. bad_content: no picture, or not the one that was promised. failed: it
could not be fetched now, and is tried again by the next run."""


@dataclass(frozen=True)
class Crawl:
    """How far a search has been read."""

    id: int
    cursor: int | None
    finished: bool
    estimate: int | None


@dataclass(frozen=True)
class Wanted:
    """A file that a search asks for, under the newest post that shows it."""

    md5: str
    post_id: int
    file_url: str | None
    bytes: int | None
    size: Size
    state: State
    reason: str
    extension: str | None
    """By its bytes, where the file is here."""
    bytes_on_disk: int | None
    """As verified, where the file is here."""


@dataclass(frozen=True)
class Facts:
    """What one post says of its file."""

    md5: str
    post_id: int
    size: Size
    rating: str
    score: int | None
    tags: dict[str, list[str]]
    """By category."""


class Store:
    """An open posts.sqlite. Used by one thread, under the lock of its dataset's folder."""

    def __init__(self, path: Path, site: str) -> None:
        self._path = path
        self._site = site
        with self._errors():
            self._db = connect(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    def crawl(self, query: str) -> Crawl | None:
        """How far `query` has been read, or None where it was never begun."""
        with self._errors():
            row = self._db.execute(
                "SELECT crawl_id, cursor, finished, estimate FROM crawl"
                " WHERE site = ? AND query = ?",
                (self._site, query),
            ).fetchone()
        return None if row is None else Crawl(row[0], row[1], bool(row[2]), row[3])

    def begin_crawl(self, query: str, estimate: int | None, posts: Sequence[Post]) -> Crawl:
        """A crawl of `query` with its first page, which is not empty."""
        with self._transaction():
            row = self._db.execute(
                "INSERT INTO crawl (site, query, finished, estimate, started_at)"
                " VALUES (?, ?, 0, ?, ?) RETURNING crawl_id",
                (self._site, query, estimate, _now()),
            ).fetchone()
            return self._put_page(Crawl(row[0], None, False, estimate), posts)

    def save_page(self, crawl: Crawl, posts: Sequence[Post]) -> Crawl:
        """A page's posts and the cursor behind them; an empty page finishes the crawl."""
        with self._transaction():
            return self._put_page(crawl, posts)

    def save_post(self, post: Post) -> None:
        """A post that was asked for again."""
        with self._transaction():
            self._put(post)

    def mark_missing(self, post_id: int) -> None:
        """The site no longer knows this post."""
        with self._transaction():
            self._db.execute(
                "UPDATE post SET status = 'missing' WHERE site = ? AND post_id = ?",
                (self._site, post_id),
            )

    def wanted(self, crawl: Crawl, ratings: Iterable[str], limit: int) -> list[Wanted]:
        """The newest `limit` files of a search, newest first. What posts say is what is judged."""
        with self._errors():
            rows = self._db.execute(
                "SELECT w.md5, w.newest, p.file_url, p.bytes, p.width, p.height,"
                " coalesce(j.state, 'planned'), coalesce(j.reason, ''), j.extension, j.bytes"
                " FROM (SELECT p.md5, max(p.post_id) AS newest"
                f" {_candidates(ratings)} GROUP BY p.md5) w"
                " JOIN post p ON p.site = ? AND p.post_id = w.newest"
                " LEFT JOIN job j ON j.md5 = w.md5 ORDER BY w.newest DESC LIMIT ?",
                (*self._asked(crawl, ratings), self._site, limit),
            ).fetchall()
        return [
            Wanted(md5, newest, url, size, Size(width, height), state, reason, extension, on_disk)
            for md5, newest, url, size, width, height, state, reason, extension, on_disk in rows
        ]

    def count(self, crawl: Crawl, ratings: Iterable[str]) -> int:
        """Files that a search asks for, as far as it has been read."""
        with self._errors():
            row = self._db.execute(
                f"SELECT count(DISTINCT p.md5) {_candidates(ratings)}", self._asked(crawl, ratings)
            ).fetchone()
        return int(row[0])

    def hidden(self, crawl: Crawl, ratings: Iterable[str], from_id: int) -> list[int]:
        """Posts of a search, from id `from_id` on, whose file is not for us."""
        ratings = tuple(ratings)
        with self._errors():
            rows = self._db.execute(
                f"SELECT p.post_id {_of_ratings(ratings)}"
                " AND (p.md5 IS NULL OR p.status = 'banned') AND p.post_id >= ? ORDER BY p.post_id",
                (crawl.id, self._site, *ratings, from_id),
            ).fetchall()
        return [row[0] for row in rows]

    def facts(self, crawl: Crawl, ratings: Iterable[str]) -> Iterator[Facts]:
        """What the posts of a search say, by md5 and then by id, the oldest first."""
        with self._errors():
            chosen = self._db.execute(
                "SELECT p.md5, p.post_id, p.width, p.height, p.rating, p.score"
                f" {_candidates(ratings)} ORDER BY p.md5, p.post_id",
                self._asked(crawl, ratings),
            )
            for md5, post_id, width, height, rating, score in chosen:
                tags: dict[str, list[str]] = {}
                for category, name in self._db.execute(
                    "SELECT t.category, t.name FROM post_tag JOIN tag t USING (tag_id)"
                    " WHERE post_tag.site = ? AND post_id = ? ORDER BY position",
                    (self._site, post_id),
                ):
                    tags.setdefault(category, []).append(name)
                yield Facts(md5, post_id, Size(width, height), rating, score, tags)

    def have(self, md5: str, picture: Picture, size_bytes: int) -> None:
        """The file is on disk under its name, and verified."""
        self._settle(md5, "have", "", (picture.extension, size_bytes, *picture.size))

    def settle(self, md5: str, state: State, reason: str) -> None:
        """What became of a file that is not here, or that it is to be fetched after all."""
        self._settle(md5, state, reason, (None, None, None, None))

    def attempted(self, md5: str, reason: str) -> None:
        """A request for the file that did not end in it."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO job (md5, state, reason, attempts) VALUES (?, 'planned', ?, 1)"
                " ON CONFLICT DO UPDATE SET attempts = attempts + 1, reason = excluded.reason",
                (md5, reason),
            )

    def _settle(
        self, md5: str, state: State, reason: str, found: tuple[str | int | None, ...]
    ) -> None:
        with self._transaction():
            self._db.execute(
                "INSERT INTO job VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?) ON CONFLICT (md5) DO UPDATE SET"
                " state = excluded.state, reason = excluded.reason, extension = excluded.extension,"
                " bytes = excluded.bytes, width = excluded.width, height = excluded.height,"
                " settled_at = excluded.settled_at",
                (md5, state, reason, *found, _now()),
            )

    def _put_page(self, crawl: Crawl, posts: Sequence[Post]) -> Crawl:
        after = Crawl(
            crawl.id,
            min((post.id for post in posts), default=crawl.cursor),
            not posts,
            crawl.estimate,
        )
        for post in posts:
            self._put(post)
        self._db.executemany(
            "INSERT OR IGNORE INTO crawl_post VALUES (?, ?)",
            [(crawl.id, post.id) for post in posts],
        )
        self._db.execute(
            "UPDATE crawl SET cursor = ?, finished = ? WHERE crawl_id = ?",
            (after.cursor, after.finished, crawl.id),
        )
        return after

    def _put(self, post: Post) -> None:
        key = (self._site, post.id)
        self._db.execute(
            "INSERT INTO post VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET"
            " md5 = excluded.md5, extension = excluded.extension, bytes = excluded.bytes,"
            " width = excluded.width, height = excluded.height, rating = excluded.rating,"
            " score = excluded.score, status = excluded.status, file_url = excluded.file_url,"
            " source_url = excluded.source_url, parent_id = excluded.parent_id,"
            " fetched_at = excluded.fetched_at",
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
                _now(),
            ),
        )
        self._db.execute(
            "INSERT INTO post_raw VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET json = excluded.json",
            (*key, zlib.compress(post.raw.encode())),
        )
        self._db.execute("DELETE FROM post_tag WHERE site = ? AND post_id = ?", key)
        named = [(name, category) for category, names in post.tags.items() for name in names]
        self._db.executemany(
            "INSERT INTO tag (site, name, category) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET category = excluded.category"
            " WHERE category <> excluded.category",
            [(self._site, name, category) for name, category in named],
        )
        self._db.executemany(
            "INSERT INTO post_tag SELECT ?, ?, ?, tag_id FROM tag WHERE site = ? AND name = ?",
            [(*key, place, self._site, name) for place, (name, _) in enumerate(named)],
        )

    def _asked(self, crawl: Crawl, ratings: Iterable[str]) -> tuple[str | int, ...]:
        return (crawl.id, self._site, *ratings)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:  # A full disk has already ended it.
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's complaints about the disk and the file as ours; those about SQL are our bugs."""
        try:
            with translated(self._path):
                try:
                    yield
                except sqlite3.DatabaseError as error:
                    code = DISK_ERRORS.get(_code(error))
                    if code is None:
                        raise
                    raise OSError(code, str(error)) from error
        except sqlite3.DatabaseError as error:
            if _code(error) not in FILE_ERRORS:
                raise
            raise UrushiError(
                f"{self._path} cannot be used: {error}. If it is damaged, move it away: pictures "
                "stay and are taken up again, posts are asked for anew."
            ) from error


def _code(error: sqlite3.Error) -> int:
    """The primary result code; 0 for errors of the module itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


FILE_ERRORS = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_BUSY,
)
DISK_ERRORS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
}


def _of_ratings(ratings: Iterable[str]) -> str:
    """A crawl's posts of these ratings that the site still has. Binds crawl, site, ratings."""
    marks = ", ".join("?" for _ in ratings)
    gone = ", ".join(f"'{status}'" for status in UNAVAILABLE)
    return (
        "FROM crawl_post c JOIN post p ON c.crawl_id = ? AND p.site = ? AND p.post_id = c.post_id"
        f" WHERE p.rating IN ({marks}) AND p.status NOT IN ({gone})"
    )


def _candidates(ratings: Iterable[str]) -> str:
    """Of those, the ones that show a file of a type that we take."""
    types = ", ".join(f"'{extension}'" for extension in EXTENSIONS)
    return (
        f"{_of_ratings(ratings)} AND p.status <> 'banned' AND p.md5 IS NOT NULL"
        f" AND p.extension IN ({types})"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
