"""Danbooru's JSON (danbooru.donmai.us and sites that run its code) into posts.

Facts relied upon: metatags such as rating: and filetype: are free, so the site does the filtering;
a visitor may search for two tags, so further ones are sifted here; pages are limited to 200 posts
and a cursor `b<ID>` goes as deep as there are posts, always by falling id; `a<ID>` takes the lowest
ids above and shows them newest first all the same; a post that is not for us lacks `md5` and
`file_url`; a deleted one is listed unless the search says otherwise.
"""

import re
from collections.abc import Sequence
from typing import Any

from pipeline.download import fields
from pipeline.download.header import EXTENSIONS
from pipeline.download.posts import CATEGORIES, Account, Malformed, Post, Question, Status
from pipeline.download.terms import Search, split, terms_of
from pipeline.recipe.dataset import Download

PER_PAGE = 200
MOST_TAGS = 2
MOST_ALIASES = 1000
"""Rows of an answer that are no posts."""
RATINGS = {"g": "general", "s": "sensitive", "q": "questionable", "e": "explicit"}
LETTERS = {word: letter for letter, word in RATINGS.items()}
FREE = re.compile(
    "-?(status|rating|limit|is|id|age|date|filesize|filetype|parent|child|md5|width|height|duration"
    "|mpixels|ratio|score|upvotes|downvotes|favcount|embedded|tagcount|pixiv|pixiv_id):",
    re.IGNORECASE,
)


class Danbooru:
    """The dialect of one site that runs Danbooru."""

    per_page = PER_PAGE
    most_ids = PER_PAGE
    most_per_second = 10.0
    empty_pages = 1
    account = Account(("login", "api_key"))

    def __init__(self, site: str, address: str, *domains: str) -> None:
        self.site = site
        self.address = address
        self.domains = domains

    def query(self, asked: Download) -> Search:
        terms, rest = split(terms_of(asked.tags), MOST_TAGS, lambda term: bool(FREE.match(term)))
        letters = ",".join(LETTERS[rating] for rating in asked.ratings)
        types = ",".join(EXTENSIONS)
        filters = f"rating:{letters} -status:deleted filetype:{types}"
        return Search(" ".join((*terms, filters)), rest)

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
        return Question("/posts.json", {"tags": f"id:{listed}", "limit": str(PER_PAGE)})

    def read_page(self, content: Any) -> list[Post]:
        if not isinstance(content, list):
            raise Malformed("a page of posts is not a list")
        return [self.read_post(item) for item in content]

    def count(self, query: str) -> Question:
        return Question("/counts/posts.json", {"tags": query})

    def read_count(self, content: Any) -> int | None:
        try:
            count = content["counts"]["posts"]
        except (TypeError, KeyError):
            return None
        return count if isinstance(count, int) and count >= 0 else None

    def post(self, identifier: int) -> Question:
        return Question(f"/posts/{identifier}.json")

    def read_post(self, content: Any) -> Post:
        if not isinstance(content, dict):
            raise Malformed("a post is not an object")
        tags = {category: _tags(content, category) for category in CATEGORIES}
        kind = fields.extension(fields.text(content, "file_ext"))
        asset = content.get("media_asset")
        asset = asset if isinstance(asset, dict) else {}
        return Post(
            site=self.site,
            id=fields.identifier(content),
            md5=fields.digest(content.get("md5")),
            extension=kind,
            bytes=fields.whole(content, "file_size"),
            size=fields.size(content, "image_width", "image_height"),
            rating=RATINGS.get(fields.text(content, "rating"), "unknown"),
            score=fields.whole(content, "score"),
            status=_status(content),
            file_url=fields.text(content, "file_url") or None,
            source_url=fields.text(content, "source"),
            parent_id=fields.whole(content, "parent_id"),
            created_at=fields.moment(content.get("created_at")),
            tags=tags,
            raw=fields.raw(content),
            uploader=str(fields.whole(content, "uploader_id") or ""),
            pixel_hash=fields.digest(asset.get("pixel_hash")),
            animated=bool(asset.get("duration")) or fields.moves(kind, tags["meta"]),
        )

    def tags(self, names: Sequence[str]) -> None:
        return None

    def read_tags(self, content: Any) -> dict[str, str]:
        return {}

    def aliases(self, names: Sequence[str]) -> Question:
        parameters = {
            "search[consequent_name_comma]": ",".join(names),
            "search[status]": "active",
            "only": "antecedent_name,consequent_name",
            "limit": str(MOST_ALIASES),
        }
        return Question("/tag_aliases.json", parameters)

    def read_aliases(self, content: Any) -> list[tuple[str, str]]:
        return fields.aliases(content)

    def complaint(self, content: Any) -> str:
        return str(content.get("message") or "") if isinstance(content, dict) else ""


def _tags(content: dict[str, Any], category: str) -> tuple[str, ...]:
    text = content.get(f"tag_string_{category}")
    if not isinstance(text, str):
        # Without categories an artist's name could not be told from a tag and would be trained on.
        raise Malformed(f"a post has no tag_string_{category}")
    return tuple(dict.fromkeys(text.split()))


def _status(content: dict[str, Any]) -> Status:
    marks: tuple[tuple[str, Status], ...] = (
        ("is_deleted", "deleted"),
        ("is_banned", "banned"),
        ("is_flagged", "flagged"),
        ("is_pending", "pending"),
    )
    return next((status for key, status in marks if content.get(key)), "active")
