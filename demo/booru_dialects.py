"""The other families' answers over the same posts: Gelbooru, Gelbooru 0.2, Moebooru and e621.

As their sites give them, with what is awkward about each: tags without categories, no size, a
`post` that is missing when there is none, an empty body, a deleted post that any `id:` term brings
back, ratings that know no "general". For tests, which ask each of them for the same pictures.
"""

import html
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol
from xml.sax.saxutils import quoteattr

from aiohttp import web
from aiohttp.typedefs import Handler

from demo.booru_api import basic
from demo.booru_posts import alias_rows, file_path
from demo.booru_query import QueryError, parse
from demo.corpus import Post

Family = Literal["danbooru", "gelbooru", "gelbooru02", "gelbooru02-json", "moebooru", "e621"]

RATING_WORDS = {"g": "general", "s": "sensitive", "q": "questionable", "e": "explicit"}
OLD_RATINGS = {"g": "s", "s": "s", "q": "q", "e": "e"}
TYPES = {"general": 0, "artist": 1, "copyright": 3, "character": 4, "meta": 5}
KINDS = {"meta": "faults"}
"""What Moebooru calls a category otherwise."""
MOST_PER_PAGE = {"gelbooru": 100, "gelbooru02": 100, "moebooru": 100, "e621": 320}


class Booru(Protocol):
    """What is served."""

    url: str
    posts: dict[int, Post]
    files: dict[str, bytes]
    aliases: dict[str, str]
    """Names of today by the tags' former ones."""
    family: Family
    account: tuple[str, str] | None
    untold: set[str]
    """Tags of which the list of tags knows nothing."""


class Dialects:
    """The handlers over one booru's posts."""

    def __init__(self, booru: Booru) -> None:
        self._booru = booru

    def routes(self) -> list[web.RouteDef]:
        if self._booru.family == "moebooru":
            return [
                web.get("/post.json", self._answer(self._moebooru)),
                web.get("/post.xml", self._answer(self._moebooru_count)),
                web.get("/tag/summary.json", self._answer(self._moebooru_summary)),
            ]
        if self._booru.family == "e621":
            return [
                web.get("/posts.json", self._answer(self._e621)),
                web.get("/posts/{id}.json", self._answer(self._e621_post)),
                web.get("/tag_aliases.json", self._answer(self._e621_aliases)),
            ]
        return [web.get("/index.php", self._answer(self._gelbooru))]

    def _answer(self, handle: Callable[[web.Request], web.Response]) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            try:
                return handle(request)
            except (QueryError, ValueError) as error:
                return _json(422, {"success": False, "reason": str(error)})

        return handler

    def _found(self, tags: str, limit: int, *, with_deleted: bool = False) -> list[Post]:
        """Posts of a search in any of these families' words."""
        terms, rising, wanted = [], False, None
        for term in tags.split():
            name, _, value = term.partition(":")
            if name in ("order", "sort"):
                rising = value in ("id", "id:asc")
            elif name.lstrip("-") == "rating":
                letters = self._letters(value)
                wanted = set("gsqe") if wanted is None else wanted
                wanted = wanted - letters if name.startswith("-") else wanted & letters
            elif term != "status:any":
                terms.append(term)
        query = parse(" ".join(terms), most_tags=40)
        posts = [
            post
            for post in self._booru.posts.values()
            if query.matches(post)
            and (wanted is None or post.rating in wanted)
            and (with_deleted or not post.is_deleted)
        ]
        return sorted(posts, key=lambda post: post.id if rising else -post.id)[:limit]

    def _letters(self, value: str) -> set[str]:
        if self._booru.family in ("moebooru", "e621"):
            return {ours for ours, theirs in OLD_RATINGS.items() if theirs == value[:1]}
        return {ours for ours, theirs in RATING_WORDS.items() if theirs == value}

    def _gelbooru(self, request: web.Request) -> web.Response:
        asked = request.query
        family = self._booru.family
        account = self._booru.account
        if account is not None and (asked.get("user_id"), asked.get("api_key")) != account:
            return web.Response(status=401, text="Missing authentication.")
        limit = min(int(asked.get("limit", "100")), 100)
        as_json = asked.get("json") == "1"
        if asked["s"] == "tag":
            rows = self._tags(asked.get("names", "").split())[:limit]
            if family == "gelbooru":
                return _json(200, {"@attributes": {"count": len(rows)}} | _some("tag", rows))
            return _xml("tags", "tag", rows)
        if "id" in asked:
            found = [p for p in self._booru.posts.values() if str(p.id) == asked["id"]]
        else:
            found = self._found(asked.get("tags", ""), limit)
        rows = [self._gelbooru_post(post) for post in found]
        if family == "gelbooru":
            count = len(self._found(asked.get("tags", ""), 10**9))
            facts = {"limit": limit, "offset": 0, "count": count}
            return _json(200, {"@attributes": facts} | _some("post", rows))
        if as_json:
            for row in rows:
                row["hash"] = row.pop("md5")
            return _json(200, rows) if rows else web.Response(text="", content_type="text/html")
        return _xml("posts", "post", rows, count=len(self._found(asked.get("tags", ""), 10**9)))

    def _gelbooru_post(self, post: Post) -> dict[str, Any]:
        tags = sorted(tag for names in post.tags.values() for tag in names)
        return {
            "id": post.id,
            "created_at": post.created_at.strftime("%a %b %d %H:%M:%S +0000 %Y"),
            "score": post.score if post.id % 5 else None,
            "width": post.size.width,
            "height": post.size.height,
            "md5": post.md5 if post.is_visible else "",
            "directory": post.md5[:2] if post.id % 3 else 4321,
            "image": f"{post.md5}.{post.extension}",
            "rating": RATING_WORDS[post.rating],
            "source": "",
            "change": 1_700_000_000 + post.id,
            "owner": "danbooru",
            "parent_id": 0,
            "tags": html.escape(" ".join(tags), quote=True).replace("&#x27;", "&#039;"),
            "has_notes": "false",
            "status": "deleted" if post.is_deleted else "active",
            "file_url": f"{self._booru.url}{file_path(post)}" if post.is_visible else "",
        }

    def _tags(self, names: Sequence[str]) -> list[dict[str, Any]]:
        known = {
            tag: TYPES[category]
            for post in self._booru.posts.values()
            for category, tags in post.tags.items()
            for tag in tags
        }
        return [
            {"id": number, "name": html.escape(name), "count": 1, "type": known[name]}
            for number, name in enumerate(names, 1)
            if name in known and name not in self._booru.untold
        ]

    def _moebooru(self, request: web.Request) -> web.Response:
        tags = request.query.get("tags", "")
        limit = min(int(request.query.get("limit", "40")), 100)
        # Any term about ids switches the filter off that leaves out the deleted ones.
        found = self._found(tags, limit, with_deleted="id:" in tags)
        types = {
            tag: "circle" if tag == "nurishi_(workshop)" else KINDS.get(category, category)
            for post in found
            for category, names in post.tags.items()
            for tag in names
            if tag not in self._booru.untold
        }
        return _json(200, {"posts": [self._moebooru_post(p) for p in found], "tags": types})

    def _moebooru_count(self, request: web.Request) -> web.Response:
        found = self._found(request.query.get("tags", ""), 10**9)
        return _xml("posts", "post", [], count=len(found))

    def _moebooru_summary(self, request: web.Request) -> web.Response:
        """Every tag with its number and its former names, in one string."""
        formers: dict[str, list[str]] = {}
        for former, name in self._booru.aliases.items():
            formers.setdefault(name, []).append(former)
        entries = {
            f"{TYPES[category]}`{'`'.join((tag, *formers.get(tag, ())))}` ": None
            for post in self._booru.posts.values()
            for category, tags in post.tags.items()
            for tag in tags
        }
        return _json(200, {"version": 1, "data": "".join(entries)})

    def _moebooru_post(self, post: Post) -> dict[str, Any]:
        shown = post.is_visible and not post.is_deleted
        url = f"{self._booru.url}{file_path(post)}"
        tags = sorted(tag for names in post.tags.values() for tag in names)
        return {
            "id": post.id,
            "tags": " ".join(tags),
            "created_at": int(post.created_at.timestamp()),
            "creator_id": 7,
            "author": "someone",
            "source": "",
            "score": post.up_score,
            "md5": post.md5,
            "file_size": post.bytes,
            "file_ext": post.extension,
            "rating": OLD_RATINGS[post.rating],
            "width": post.size.width,
            "height": post.size.height,
            "status": "deleted" if post.is_deleted else "active",
            "parent_id": None,
        } | ({"file_url": url, "jpeg_url": f"{url}?jpeg"} if shown else {})

    def _e621(self, request: web.Request) -> web.Response:
        if self._is_unknown(request):
            return _json(401, {"success": False, "reason": "SessionLoader::AuthenticationFailure"})
        asked = request.query
        limit = int(asked.get("limit", "75"))
        if limit > MOST_PER_PAGE["e621"]:
            return _json(410, {"success": False, "reason": f"limit {limit} is too many"})
        page = asked.get("page", "1")
        tags = asked.get("tags", "")
        posts = self._found(tags, 10**9, with_deleted="status:any" in tags)
        if page[0] == "b":
            posts = [post for post in posts if post.id < int(page[1:])][:limit]
        elif page[0] == "a":
            posts = [post for post in posts if post.id > int(page[1:])][-limit:]
        else:
            posts = posts[(int(page) - 1) * limit : int(page) * limit]
        return _json(200, {"posts": [self._e621_post_json(post) for post in posts]})

    def _e621_post(self, request: web.Request) -> web.Response:
        post = self._booru.posts.get(int(request.match_info["id"]))
        if post is None:
            return _json(404, {"success": False, "reason": "not found"})
        return _json(200, {"post": self._e621_post_json(post)})

    def _e621_aliases(self, request: web.Request) -> web.Response:
        asked = request.query
        limit = int(asked.get("limit", "75"))
        if limit > MOST_PER_PAGE["e621"]:
            return _json(410, {"success": False, "reason": f"limit {limit} is too many"})
        rows = alias_rows(self._booru.aliases, asked.get("search[consequent_name]", "").split())
        # Where there is none, it is no list.
        return _json(200, rows[:limit] or {"tag_aliases": []})

    def _is_unknown(self, request: web.Request) -> bool:
        sent = request.headers.get("Authorization")
        return sent is not None and sent != basic(self._booru.account)

    def _e621_post_json(self, post: Post) -> dict[str, Any]:
        shown = post.is_visible and not post.is_deleted
        return {
            "id": post.id,
            "created_at": post.created_at.isoformat(timespec="milliseconds"),
            "file": {
                "width": post.size.width,
                "height": post.size.height,
                "ext": post.extension,
                "size": post.bytes,
                "md5": post.md5,
                "url": f"{self._booru.url}{file_path(post)}" if shown else None,
            },
            "score": {"up": post.up_score, "down": post.down_score, "total": post.score},
            "tags": {category: list(post.tags.get(category, ())) for category in TYPES}
            | {"species": [], "lore": [], "invalid": []},
            "flags": {"pending": False, "flagged": False, "deleted": post.is_deleted},
            "rating": OLD_RATINGS[post.rating],
            "sources": ["https://example.org/a", "https://example.org/b"],
            "relationships": {"parent_id": None},
            "uploader_id": 9,
            "uploader_name": "someone",
            "duration": 0.8 if post.extension in ("gif", "mp4") else None,
        }


def _some(key: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """As Gelbooru has lists: no key where there is nothing, no list where there is one."""
    if not rows:
        return {}
    return {key: rows[0] if len(rows) == 1 else rows}


def _xml(root: str, item: str, rows: list[dict[str, Any]], **facts: int) -> web.Response:
    lines = [
        f"<{item} {' '.join(f'{k}={_attribute(v)}' for k, v in row.items())}/>" for row in rows
    ]
    head = " ".join(f'{key}="{value}"' for key, value in facts.items())
    text = f'<?xml version="1.0" encoding="UTF-8"?><{root} {head}>{"".join(lines)}</{root}>'
    return web.Response(text=text, content_type="text/xml")


def _attribute(value: Any) -> str:
    return quoteattr("" if value is None else str(value))


def _json(status: int, content: Any) -> web.Response:
    return web.Response(status=status, text=json.dumps(content), content_type="application/json")
