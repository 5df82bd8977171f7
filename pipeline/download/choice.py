"""What rules take of the posts of a search: the files, in order, and why the rest is left.

Decided from what the store holds, anew at every call: a score that rose, a rating that was mended,
a line added to a do-not-train list count from the next export on. All of it is set work in SQLite's
temporary tables, so that a million posts take seconds and no memory to speak of.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from pipeline.artefacts.alike import Seen
from pipeline.artefacts.same import Same
from pipeline.download.moments import now
from pipeline.download.rules import Rules
from pipeline.download.store import Crawl, State, Store
from pipeline.download.verdicts import HIDDEN, UNTOLD, judge, verdict
from pipeline.size import Size

CHUNK = 1000
"""Rows read at a time. Between them the store may be written to."""
CHOSEN = (
    "CREATE TEMP TABLE IF NOT EXISTS chosen"
    " (rank INTEGER PRIMARY KEY, md5 TEXT UNIQUE, post_id INTEGER)"
)
MOST_ASKED = 6
"""Requests for a file that its post shows and its host does not: of three runs, two each."""
TAGS = (
    "(SELECT json_group_object(name, category) FROM (SELECT t.name, t.category FROM post_tag"
    " JOIN tag t USING (tag_id) WHERE post_tag.site = p.site AND post_tag.post_id = p.post_id"
    " ORDER BY position))"
)
"""A post's, in its order, as one value: a row for each takes Python twice as long."""


@dataclass(frozen=True)
class Wanted:
    """A file that is taken, under the newest post that shows it."""

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
    """What one post says of a file that is taken."""

    md5: str
    post_id: int
    size: Size
    rating: str
    score: int | None
    created_at: str
    fetched_at: str
    """When the site said all this."""
    tags: dict[str, list[str]]
    """By category."""
    parent: int | None
    """The post that it is a variant of, as the site says."""


class Choice:
    """The files that `rules` take of a crawl, decided when it is made."""

    def __init__(self, store: Store, crawl: Crawl, rules: Rules) -> None:
        self._store = store
        self._db = store.db
        self._crawl = crawl
        self._rules = rules
        judge(store, rules)
        left = Counter[str]()
        self.count, self.oldest = self._choose(left)
        self.left = dict(sorted(left.items()))
        """Why posts of the search are not taken, and how many for each reason."""

    def wanted(self) -> Iterator[Wanted]:
        """The files, newest first."""
        return self._files("TRUE")

    def lost(self) -> Iterator[Wanted]:
        """Those that are not here, newest first."""
        return self._files("j.state IS NOT 'have'")

    def unexamined(self) -> Iterator[Wanted]:
        """Those that are here and were not decoded yet, newest first."""
        return self._files("j.state = 'have' AND j.examined_at IS NULL")

    def _files(self, which: str) -> Iterator[Wanted]:
        rank = -1
        while True:
            with self._store.errors():
                rows = self._db.execute(
                    "SELECT c.rank, c.md5, c.post_id, p.file_url, p.bytes, p.width, p.height,"
                    " coalesce(j.state, 'planned'), coalesce(j.reason, ''), j.extension, j.bytes"
                    " FROM temp.chosen c"
                    " JOIN post p ON p.site = ? AND p.post_id = c.post_id"
                    " LEFT JOIN job j ON j.md5 = c.md5"
                    f" WHERE c.rank > ? AND {which} ORDER BY c.rank LIMIT ?",
                    (self._store.site, rank, CHUNK),
                ).fetchall()
            if not rows:
                return
            rank = rows[-1][0]
            for _, md5, post_id, url, size, width, height, *job in rows:
                yield Wanted(md5, post_id, url, size, Size(width, height), *job)

    def reopen(self) -> None:
        """Files that the site did not give and whose posts show them are to be tried once more.

        A post is restored or rated back, and a new file may take a day to be on all of a site's
        machines.
        """
        with self._store.transaction() as db:
            db.execute(
                "UPDATE job SET state = 'planned' WHERE md5 IN (SELECT md5 FROM temp.chosen)"
                " AND attempts < ? AND (state IN ('gone', 'hidden')"
                " OR state = 'refused' AND reason LIKE 'its rating is now %')",
                (MOST_ASKED,),
            )

    def reopen_all(self) -> None:
        """Files that are not here are to be tried once more, whatever kept them away."""
        with self._store.transaction() as db:
            db.execute(
                "UPDATE job SET state = 'planned' WHERE md5 IN (SELECT md5 FROM temp.chosen)"
                " AND state <> 'have'"
            )

    def facts(self, md5: str | None = None) -> Iterator[Facts]:
        """What the posts of the files, or of one, say: by md5 and then by id, the oldest first."""
        one = "" if md5 is None else " AND f.md5 = ?"
        with self._store.errors():
            rows = self._db.execute(
                "SELECT f.md5, p.post_id, p.width, p.height, p.rating, p.score, p.created_at,"
                f" p.fetched_at, p.parent_id, {TAGS}"
                f" FROM temp.chosen f CROSS JOIN post p ON p.md5 = f.md5 {self._in_crawl()}"
                f" WHERE {self._verdict()} IS NULL{one} ORDER BY f.md5, p.post_id",
                (*self._bound(), *([] if md5 is None else [md5])),
            )
            for name, post_id, width, height, *said, parent, categories in rows:
                tags: dict[str, list[str]] = {}
                for tag, category in json.loads(categories).items():
                    tags.setdefault(category, []).append(tag)
                rating, score, created_at, fetched_at = said
                size = Size(width, height)
                yield Facts(
                    name, post_id, size, rating, score, created_at, fetched_at, tags, parent
                )

    def outstanding(self) -> tuple[int, int, int]:
        """Files that have not come to an end, their bytes as posts state them, and of how many no
        size is stated."""
        with self._store.errors():
            files, size_bytes, unstated = self._db.execute(
                "SELECT count(*), coalesce(sum(p.bytes), 0), count(*) - count(p.bytes)"
                " FROM temp.chosen c JOIN post p ON p.site = ? AND p.post_id = c.post_id"
                " LEFT JOIN job j ON j.md5 = c.md5"
                " WHERE coalesce(j.state, 'planned') IN ('planned', 'failed')",
                (self._store.site,),
            ).fetchone()
        return files, size_bytes, unstated

    def here(self) -> Iterator[tuple[str, str, Seen]]:
        """(extension, source, how it looks) of the files that are here, by md5."""
        with self._store.errors():
            rows = self._db.execute(
                "SELECT j.extension, c.post_id, j.md5, j.width, j.height, j.likeness"
                " FROM temp.chosen c JOIN job j ON j.md5 = c.md5 WHERE j.state = 'have'"
                " ORDER BY c.md5"
            )
            for extension, post_id, md5, width, height, likeness in rows:
                seen = Seen(md5, Size(width, height), likeness)
                yield extension, f"{self._store.site}:{post_id}", seen

    def doubles(self) -> dict[str, str]:
        """Files that are here with equal pixels under other md5s: each to the one that is kept.

        That is the first that was posted. The site's digest tells it, or ours of what was decoded.
        """
        same = Same[tuple[int, str]]()
        shared = (
            "FROM temp.chosen c CROSS JOIN post p ON p.site = ? AND p.post_id = c.post_id"
            " CROSS JOIN job j ON j.md5 = c.md5 AND j.state = 'have'"
        )
        with self._store.errors():
            for digest in ("j.pixels", "p.pixel_hash"):
                # Two questions: mostly there are none, and SQLite would look at all files twice.
                several = self._db.execute(
                    f"SELECT {digest} {shared} WHERE {digest} IS NOT NULL GROUP BY 1"
                    " HAVING count(*) > 1",
                    (self._store.site,),
                ).fetchall()
                if not several:
                    continue
                rows = self._db.execute(
                    f"SELECT {digest}, c.post_id, c.md5 {shared} WHERE {digest} IN"
                    " (SELECT value FROM json_each(?)) ORDER BY 1, 2",
                    (self._store.site, json.dumps([found for (found,) in several])),
                )
                for _, group in groupby(rows, key=itemgetter(0)):
                    (_, *first), *others = group
                    for _, *other in others:
                        same.join((first[0], first[1]), (other[0], other[1]))
        return {md5: first for (_, md5), (_, first) in same.doubles().items()}

    def hidden(self) -> Iterator[int]:
        """Posts of the search whose file is not for us."""
        return (post_id for post_id, _ in self._left_as(HIDDEN))

    def untold(self) -> Iterator[tuple[int, str]]:
        """(post, md5) of what is left because an artist's name might pass for another tag."""
        return self._left_as(UNTOLD)

    def log(self) -> None:
        """Writes down which files exclusions keep out, by which rule and since when."""
        with self._store.transaction() as db:
            db.execute(
                "DELETE FROM left_out WHERE (md5, rule, origin) NOT IN"
                " (SELECT md5, rule, origin FROM temp.excluded)"
            )
            db.execute(
                "INSERT OR IGNORE INTO left_out SELECT md5, rule, origin, ? FROM temp.excluded",
                (now(),),
            )

    def _choose(self, left: Counter[str]) -> tuple[int, int]:
        """Fills temp.chosen with the newest files, and `left` with why posts were passed over.

        Returns how many, and the id of the post from which on the search was looked at; 0 where it
        was all of it.
        """
        seen: set[bytes] = set()
        oldest = 0

        def newest(
            candidates: Iterable[tuple[str, int, str | None]],
        ) -> Iterator[tuple[int, str, int]]:
            nonlocal oldest
            for md5, post_id, why in candidates:
                if why is not None:
                    left[why] += 1
                    continue
                key = bytes.fromhex(md5)  # A third of a text's memory.
                if key not in seen:
                    yield len(seen), md5, post_id
                    seen.add(key)
                    if len(seen) >= self._rules.limit:
                        oldest = post_id
                        return

        with self._store.transaction(temporary=True) as db:
            db.execute(CHOSEN)
            db.execute("DELETE FROM temp.chosen")
            candidates = db.execute(
                f"SELECT p.md5, p.post_id, {self._verdict()} FROM crawl_post c JOIN post p"
                " ON p.site = ? AND p.post_id = c.post_id WHERE c.crawl_id = ?"
                " ORDER BY c.post_id DESC",
                (self._store.site, self._crawl.id),
            )
            db.executemany("INSERT INTO temp.chosen VALUES (?, ?, ?)", newest(candidates))
            candidates.close()
        return len(seen), oldest

    def _left_as(self, why: str) -> Iterator[tuple[int, str]]:
        if why not in self.left:
            return
        with self._store.errors():
            yield from self._db.execute(
                f"SELECT p.post_id, coalesce(p.md5, '') FROM post p {self._in_crawl()}"
                f" WHERE p.post_id >= ? AND {self._verdict()} = ? ORDER BY p.post_id",
                (*self._bound(), self.oldest, why),
            )

    def _in_crawl(self) -> str:
        """Joins posts p to the crawl. Binds crawl and site."""
        return "JOIN crawl_post c ON c.crawl_id = ? AND p.site = ? AND c.post_id = p.post_id"

    def _bound(self) -> tuple[int | str, ...]:
        return (self._crawl.id, self._store.site)

    def _verdict(self) -> str:
        return verdict(self._rules)


def files_known(store: Store, crawl: Crawl, rules: Rules) -> int:
    """Files that rules take of a crawl, as far as it has been read, without a limit."""
    judge(store, rules)
    with store.errors():
        row = store.db.execute(
            "SELECT count(DISTINCT p.md5) FROM post p JOIN crawl_post c ON c.crawl_id = ?"
            f" AND p.site = ? AND c.post_id = p.post_id WHERE {verdict(rules)} IS NULL",
            (crawl.id, store.site),
        ).fetchone()
    return int(row[0])
