"""e621's JSON (e621.net and e926.net) into posts.

Facts relied upon: pages hold up to 320 posts and more is an error; cursors as Danbooru's; forty
tags to a search; no count of a search; ratings are s, q and e, and s is no "general"; a post that
is not for us has a null file.url though its md5 is shown, and no address is made up from that.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.download import fields
from pipeline.download.posts import Account, Malformed, Post, Question, Status
from pipeline.download.terms import Search, rating_terms, split, terms_of
from pipeline.recipe.dataset import Download

PER_PAGE = 320
MOST_IDS = 100
MOST_TAGS = 40
SPARE = 4
"""Terms that are added to the recipe's: ratings and a range of ids."""
RATINGS = {"s": "sensitive", "q": "questionable", "e": "explicit"}
LETTERS = {word: letter for letter, word in RATINGS.items()}
CATEGORIES = {
    "general": "general",
    "species": "general",
    "character": "character",
    "copyright": "copyright",
    "artist": "artist",
    "contributor": "artist",
    "director": "artist",
    "meta": "meta",
    "lore": "meta",
    "invalid": "meta",
}
NO_ARTISTS = frozenset(
    ("avoid_posting", "conditional_dnp", "sound_warning", "unknown_artist", "epilepsy_warning")
)
"""Notes that stand in the list of artists."""


class E621:
    """The dialect of one site that runs e621's code."""

    per_page = PER_PAGE
    most_ids = MOST_IDS
    most_per_second = 2.0
    empty_pages = 1
    account = Account(("login", "api_key"))

    def __init__(
        self, site: str, address: str, *domains: str, ratings: tuple[str, ...] = tuple(LETTERS)
    ) -> None:
        self.site = site
        self.address = address
        self.domains = domains
        self._letters = {word: LETTERS[word] for word in ratings}

    def query(self, asked: Download) -> Search:
        terms, rest = split(terms_of(asked.tags), MOST_TAGS - SPARE, lambda term: False)
        return Search(
            " ".join((*terms, *rating_terms(self._letters, asked.ratings, self.site))), rest
        )

    def page(self, query: str, cursor: int | None, floor: int | None = None) -> Question:
        tags = query if floor is None else f"{query} id:>={floor}".strip()
        parameters = {"tags": tags, "limit": str(PER_PAGE)}
        if cursor is not None:
            parameters["page"] = f"b{cursor}"
        return Question("/posts.json", parameters)

    def page_after(self, query: str, cursor: int) -> Question:
        parameters = {"tags": query, "limit": str(PER_PAGE), "page": f"a{cursor}"}
        return Question("/posts.json", parameters)

    def by_ids(self, identifiers: Sequence[int]) -> Question:
        listed = ",".join(map(str, identifiers))
        return Question("/posts.json", {"tags": f"id:{listed} status:any", "limit": str(PER_PAGE)})

    def read_page(self, content: Any) -> list[Post]:
        posts = content.get("posts") if isinstance(content, dict) else None
        if not isinstance(posts, list):
            raise Malformed("a page has no list of posts")
        return [self._read(item) for item in posts]

    def count(self, query: str) -> None:
        return None

    def read_count(self, content: Any) -> int | None:
        return None

    def post(self, identifier: int) -> Question:
        return Question(f"/posts/{identifier}.json")

    def read_post(self, content: Any) -> Post:
        if not isinstance(content, dict) or "post" not in content:
            raise Malformed("an answer has no post")
        return self._read(content["post"])

    def tags(self, names: Sequence[str]) -> None:
        return None

    def read_tags(self, content: Any) -> dict[str, str]:
        return {}

    def aliases(self, names: Sequence[str]) -> Question:
        parameters = {
            "search[consequent_name]": " ".join(names),
            "search[status]": "approved",
            "limit": str(PER_PAGE),
        }
        return Question("/tag_aliases.json", parameters)

    def read_aliases(self, content: Any) -> list[tuple[str, str]]:
        # An empty list is an object with one in it.
        return fields.aliases(content["tag_aliases"] if _is_none(content) else content)

    def complaint(self, content: Any) -> str:
        if not isinstance(content, dict):
            return ""
        return str(content.get("reason") or content.get("message") or "")

    def _read(self, content: Any) -> Post:
        if not isinstance(content, dict):
            raise Malformed("a post is not an object")
        file, score, flags = (_part(content, key) for key in ("file", "score", "flags"))
        kind = fields.extension(fields.text(file, "ext"))
        tags = _tags(content)
        sources = content.get("sources")
        relationships = content.get("relationships")
        return Post(
            site=self.site,
            id=fields.identifier(content),
            md5=fields.digest(file.get("md5")) if fields.text(file, "url") else None,
            extension=kind,
            bytes=fields.whole(file, "size"),
            size=fields.size(file),
            rating=RATINGS.get(fields.text(content, "rating"), "unknown"),
            score=fields.whole(score, "total"),
            status=_status(flags),
            file_url=fields.text(file, "url") or None,
            source_url="\n".join(map(str, sources)) if isinstance(sources, list) else "",
            parent_id=fields.whole(relationships, "parent_id")
            if isinstance(relationships, dict)
            else None,
            created_at=fields.moment(content.get("created_at")),
            tags=tags,
            raw=fields.raw(content),
            uploader=fields.text(content, "uploader_name")
            or str(fields.whole(content, "uploader_id") or ""),
            animated=bool(content.get("duration")) or fields.moves(kind, tags.get("meta", ())),
        )


def _is_none(content: Any) -> bool:
    return isinstance(content, dict) and content.get("tag_aliases") == []


def _part(content: dict[str, Any], key: str) -> dict[str, Any]:
    part = content.get(key)
    if not isinstance(part, dict):
        raise Malformed(f"a post has no {key}")
    return part


def _tags(content: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for theirs, names in _part(content, "tags").items():
        if not isinstance(names, list):
            raise Malformed(f"the tags of the category {theirs} are not a list")
        # A category of theirs that is new to us may hold names of people.
        ours = CATEGORIES.get(theirs, "unknown")
        for name in map(str, names):
            category = "meta" if ours == "artist" and name in NO_ARTISTS else ours
            found.setdefault(category, {})[name] = None
    if "artist" not in content["tags"]:
        raise Malformed("a post has no category artist")
    return {category: tuple(names) for category, names in found.items()}


def _status(flags: dict[str, Any]) -> Status:
    marks: tuple[Status, ...] = ("deleted", "flagged", "pending")
    return next((status for status in marks if flags.get(status)), "active")
