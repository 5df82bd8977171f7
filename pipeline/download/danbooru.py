"""Danbooru's JSON (danbooru.donmai.us and sites that run its code) into posts.

Facts relied upon: metatags such as rating: and filetype: are free, so the site does the filtering;
pages are limited to 200 posts and a cursor `b<ID>` goes as deep as there are posts, always by
falling id; a post that is not for us lacks `md5` and `file_url`; a deleted one is listed unless
the search says otherwise.
"""

import json
import re
from typing import Any

from pipeline.download.content import EXTENSIONS
from pipeline.download.posts import CATEGORIES, Malformed, Post, Question, Status
from pipeline.errors import RequestError
from pipeline.recipe.dataset import Download
from pipeline.recipe.size import Size

PER_PAGE = 200
RATINGS = {"g": "general", "s": "sensitive", "q": "questionable", "e": "explicit"}
LETTERS = {word: letter for letter, word in RATINGS.items()}
WITHOUT_EFFECT = re.compile(r"(?:^|\s)-?(order|ordfav|ordpool|limit|random):", re.IGNORECASE)


class Danbooru:
    """The dialect."""

    site = "danbooru"
    address = "https://danbooru.donmai.us"
    domain = "donmai.us"
    most_per_second = 10.0

    def query(self, asked: Download) -> str:
        useless = WITHOUT_EFFECT.search(asked.tags)
        if useless:
            raise RequestError(
                f"[download].tags has {useless[1]}:, which a crawl by id cannot obey. Remove it: "
                "pictures come newest first, and [download].limit says how many."
            )
        letters = ",".join(LETTERS[rating] for rating in asked.ratings)
        types = ",".join(EXTENSIONS)
        tags = " ".join(asked.tags.split())
        return f"{tags} rating:{letters} -status:deleted filetype:{types}"

    def page(self, query: str, cursor: int | None) -> Question:
        parameters = {"tags": query, "limit": str(PER_PAGE)}
        if cursor is not None:
            parameters["page"] = f"b{cursor}"
        return Question("/posts.json", parameters)

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
        identifier = _whole(content, "id")
        if identifier is None or identifier <= 0:
            raise Malformed("a post has no id")
        md5 = str(content.get("md5") or "").strip().lower()
        return Post(
            site=self.site,
            id=identifier,
            md5=md5 if re.fullmatch("[0-9a-f]{32}", md5) else None,
            extension=str(content.get("file_ext") or "").lower().replace("jpeg", "jpg"),
            bytes=_whole(content, "file_size"),
            size=Size(_whole(content, "image_width") or 0, _whole(content, "image_height") or 0),
            rating=RATINGS.get(str(content.get("rating")), "unknown"),
            score=_whole(content, "score"),
            status=_status(content),
            file_url=str(content.get("file_url") or "") or None,
            source_url=str(content.get("source") or ""),
            parent_id=_whole(content, "parent_id"),
            created_at=str(content.get("created_at") or ""),
            tags={category: _tags(content, category) for category in CATEGORIES},
            raw=json.dumps(content, ensure_ascii=False, separators=(",", ":")),
        )

    def complaint(self, content: Any) -> str:
        return str(content.get("message") or "") if isinstance(content, dict) else ""


def _whole(content: dict[str, Any], key: str) -> int | None:
    value = content.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


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
