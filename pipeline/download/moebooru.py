"""Moebooru's JSON (yande.re, konachan.com and their kin) into posts.

Facts relied upon: `id:<N order:id_desc` goes as deep as there are posts where numbered pages stop;
any `id:` term also lists deleted posts, which are told by their status; a hundred posts to a page;
six tags to a search; one summary lists every tag of the site as "type`name`former name`", with
spaces between; `include_tags` gives the categories of a page's tags with it; ratings are s, q
and e, and s is no "general"; `jpeg_url` and `sample_url` are made anew and match no md5. Reading
needs no account, and the sites' password hashes are not a secret that one should hand around.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from pipeline.download import fields
from pipeline.download.posts import UNKNOWN, Account, Malformed, Post, Question, Status
from pipeline.download.terms import Search, rating_terms, split, terms_of
from pipeline.recipe.dataset import Download

PER_PAGE = 100
MOST_TAGS = 6
SPARE = 3
"""Terms that are added to the recipe's: ratings, ids and the order."""
RATINGS = {"s": "sensitive", "q": "questionable", "e": "explicit"}
WORDS = {word: letter for letter, word in RATINGS.items()}
CATEGORIES = {
    "general": "general",
    "artist": "artist",
    "circle": "artist",
    "copyright": "copyright",
    "character": "character",
    "style": "general",
    "faults": "meta",
}
"""Of the sites' words. A circle is artists under one name."""
NUMBERS = {0: "general", 1: "artist", 3: "copyright", 4: "character", 5: "artist", 6: "meta"}
STATUSES: Mapping[str, Status] = {
    "active": "active",
    "pending": "pending",
    "flagged": "flagged",
    "deleted": "deleted",
}


class Moebooru:
    """The dialect of one site that runs Moebooru."""

    per_page = PER_PAGE
    most_ids = PER_PAGE
    most_per_second = 2.0
    empty_pages = 1
    account = Account()

    def __init__(self, site: str, address: str, *domains: str) -> None:
        self.site = site
        self.address = address
        self.domains = domains

    def query(self, asked: Download) -> Search:
        terms, rest = split(terms_of(asked.tags), MOST_TAGS - SPARE, lambda term: False)
        return Search(" ".join((*terms, *rating_terms(WORDS, asked.ratings, self.site))), rest)

    def page(self, query: str, cursor: int | None, floor: int | None = None) -> Question:
        if floor is not None:
            term = f"id:>={floor}" if cursor is None else f"id:{floor}..{cursor - 1}"
        else:
            term = "" if cursor is None else f"id:<{cursor}"
        return self._list(f"{query} {term} order:id_desc")

    def page_after(self, query: str, cursor: int) -> Question:
        return self._list(f"{query} id:>{cursor} order:id")

    def by_ids(self, identifiers: Sequence[int]) -> Question:
        return self._list(f"id:{','.join(map(str, identifiers))}")

    def read_page(self, content: Any) -> list[Post]:
        posts = content.get("posts") if isinstance(content, dict) else None
        if not isinstance(posts, list):
            raise Malformed("a page has no list of posts")
        categories = content.get("tags")
        known = categories if isinstance(categories, dict) else {}
        return [self._read(item, known) for item in posts]

    def count(self, query: str) -> Question:
        return Question("/post.xml", {"tags": query, "limit": "1"}, form="xml")

    def read_count(self, content: Any) -> int | None:
        return fields.whole(content.attrib, "count") if isinstance(content, Element) else None

    def post(self, identifier: int) -> Question:
        return self.by_ids([identifier])

    def read_post(self, content: Any) -> Post | None:
        posts = self.read_page(content)
        return posts[0] if posts else None

    def tags(self, names: Sequence[str]) -> None:
        return None  # They come with the page.

    def read_tags(self, content: Any) -> dict[str, str]:
        return {}

    def aliases(self, names: Sequence[str]) -> Question:
        return Question("/tag/summary.json")

    def read_aliases(self, content: Any) -> list[tuple[str, str]]:
        data = content.get("data") if isinstance(content, dict) else None
        if not isinstance(data, str):
            raise Malformed("the summary of tags has no data")
        found = []
        for entry in data.split():
            _, *names = entry.rstrip("`").split("`")
            if not names:
                raise Malformed("the summary of tags has an entry without a name")
            found += [(former, names[0]) for former in names[1:]]
        return found

    def complaint(self, content: Any) -> str:
        return str(content.get("reason") or "") if isinstance(content, dict) else ""

    def _list(self, tags: str) -> Question:
        parameters = {"api_version": "2", "include_tags": "1", "limit": str(PER_PAGE)}
        return Question("/post.json", {"tags": " ".join(tags.split())} | parameters)

    def _read(self, content: Any, known: Mapping[str, Any]) -> Post:
        if not isinstance(content, dict):
            raise Malformed("a post is not an object")
        kind = fields.extension(
            fields.text(content, "file_ext") or fields.text(content, "file_url")
        )
        tags: dict[str, list[str]] = {}
        for name in fields.names(content.get("tags")):
            tags.setdefault(_category(known.get(name)), []).append(name)
        url = fields.text(content, "file_url")
        return Post(
            site=self.site,
            id=fields.identifier(content),
            md5=fields.digest(content.get("md5")) if url else None,
            extension=kind,
            bytes=fields.whole(content, "file_size"),
            size=fields.size(content),
            rating=RATINGS.get(fields.text(content, "rating"), "unknown"),
            score=fields.whole(content, "score"),
            status=STATUSES.get(fields.text(content, "status"), "pending"),
            file_url=url or None,
            source_url=fields.text(content, "source"),
            parent_id=fields.whole(content, "parent_id"),
            created_at=fields.moment(content.get("created_at")),
            tags={category: tuple(names) for category, names in tags.items()},
            raw=fields.raw(content),
            uploader=fields.text(content, "author"),
            animated=fields.moves(kind, fields.names(content.get("tags"))),
        )


def _category(theirs: Any) -> str:
    if isinstance(theirs, int):
        return NUMBERS.get(theirs, UNKNOWN)
    return CATEGORIES.get(str(theirs).lower(), UNKNOWN)
