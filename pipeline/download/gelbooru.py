"""Gelbooru's JSON (gelbooru.com) into posts.

Facts relied upon: it answers only with a key; `id:<N` in the search goes as deep as there are posts
where pages stop after some 20,000; a hundred posts to a page; an empty page in the middle has been
seen, so two are the end; a page with nothing has no `post`, one with a single post may have an
object there; tags have no categories and hold HTML entities; the size in bytes is not said; a score
may be null, a parent 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.download import fields
from pipeline.download.posts import MOST_NAMES, UNKNOWN, Account, Malformed, Post, Question, Status
from pipeline.download.terms import Search, rating_terms, split, terms_of
from pipeline.recipe.dataset import Download

PATH = "/index.php"
PER_PAGE = 100
MOST_TAGS = 40
RATINGS = {
    "general": "general",
    "safe": "sensitive",
    "sensitive": "sensitive",
    "questionable": "questionable",
    "explicit": "explicit",
}
"""By the site's word. "safe" is an older scale's, which reached as far as our "sensitive"."""
WORDS = {"general": "general", "sensitive": "sensitive"} | {
    word: word for word in ("questionable", "explicit")
}
TYPES = {0: "general", 1: "artist", 3: "copyright", 4: "character", 5: "meta"}
"""Type 6, deprecated, says nothing of what a tag was."""
STATUSES: Mapping[str, Status] = {
    "active": "active",
    "pending": "pending",
    "flagged": "flagged",
    "deleted": "deleted",
}


class Gelbooru:
    """The dialect."""

    per_page = PER_PAGE
    most_ids = 0
    most_per_second = 2.0
    empty_pages = 2

    def __init__(self, site: str, address: str, *domains: str) -> None:
        self.site = site
        self.address = address
        self.domains = domains
        self.account = Account(("user_id", "api_key"), place="address", required=True)

    def query(self, asked: Download) -> Search:
        terms, rest = split(terms_of(asked.tags), MOST_TAGS, lambda term: False)
        return Search(" ".join((*terms, *rating_terms(WORDS, asked.ratings, self.site))), rest)

    def page(self, query: str, cursor: int | None, floor: int | None = None) -> Question:
        below = "" if cursor is None else f"id:<{cursor}"
        least = "" if floor is None else f"id:>={floor}"
        return self._ask("post", tags=f"{query} {below} {least}", limit=str(PER_PAGE))

    def page_after(self, query: str, cursor: int) -> Question:
        return self._ask("post", tags=f"{query} id:>{cursor} sort:id:asc", limit=str(PER_PAGE))

    def by_ids(self, identifiers: Sequence[int]) -> Question:
        return self.post(identifiers[0])

    def read_page(self, content: Any) -> list[Post]:
        return [self._read(item) for item in rows(content, "post")]

    def count(self, query: str) -> Question:
        return self._ask("post", tags=query, limit="1")

    def read_count(self, content: Any) -> int | None:
        facts = content.get("@attributes") if isinstance(content, dict) else None
        return fields.whole(facts, "count") if isinstance(facts, dict) else None

    def post(self, identifier: int) -> Question:
        return self._ask("post", id=str(identifier))

    def read_post(self, content: Any) -> Post | None:
        posts = self.read_page(content)
        return posts[0] if posts else None

    def tags(self, names: Sequence[str]) -> Question:
        return self._ask("tag", names=" ".join(names), limit=str(MOST_NAMES))

    def read_tags(self, content: Any) -> dict[str, str]:
        return categories(rows(content, "tag"))

    def aliases(self, names: Sequence[str]) -> None:
        return None

    def read_aliases(self, content: Any) -> list[tuple[str, str]]:
        return []

    def complaint(self, content: Any) -> str:
        if not isinstance(content, dict):
            return ""
        return str(content.get("reason") or content.get("message") or "")

    def _ask(self, what: str, **parameters: str) -> Question:
        if "tags" in parameters:
            parameters["tags"] = " ".join(parameters["tags"].split())
        known = {"page": "dapi", "s": what, "q": "index", "json": "1"}
        return Question(PATH, known | parameters)

    def _read(self, content: Any) -> Post:
        return read(self.site, content)


def read(site: str, content: Any) -> Post:
    """A post of Gelbooru's or of a 0.2 site, whose tags' categories are still to be asked for."""
    if not isinstance(content, Mapping):
        raise Malformed("a post is not an object")
    url = fields.text(content, "file_url")
    kind = fields.extension(fields.text(content, "image") or url)
    names = fields.names(content.get("tags"))
    return Post(
        site=site,
        id=fields.identifier(content),
        md5=fields.digest(content.get("md5") or content.get("hash")),
        extension=kind,
        bytes=None,
        size=fields.size(content),
        rating=RATINGS.get(fields.text(content, "rating").lower(), "unknown"),
        score=fields.whole(content, "score"),
        status=STATUSES.get(fields.text(content, "status") or "active", "pending"),
        file_url=url or None,
        source_url=fields.text(content, "source"),
        parent_id=fields.whole(content, "parent_id") or None,
        created_at=fields.moment(content.get("created_at")),
        tags={UNKNOWN: names} if names else {},
        raw=fields.raw(content),
        uploader=fields.text(content, "owner") or str(fields.whole(content, "creator_id") or ""),
        animated=fields.moves(kind, names),
    )


def rows(content: Any, key: str) -> list[Any]:
    """The items of an answer: none, one that stands alone, or a list. Raises Malformed."""
    if not isinstance(content, dict) or not ("@attributes" in content or key in content):
        raise Malformed(f"an answer has neither attributes nor a {key}")
    found = content.get(key, [])
    if isinstance(found, dict):
        return [found]
    if not isinstance(found, list):
        raise Malformed(f"its {key} is not a list")
    return found


def categories(items: Sequence[Any]) -> dict[str, str]:
    """Category by name, of the tags whose type we know."""
    found = {}
    for item in items:
        if isinstance(item, Mapping) and fields.whole(item, "type") in TYPES:
            for name in fields.names(item.get("name")):
                found[name] = TYPES[fields.whole(item, "type") or 0]
    return found
