"""The booru's answers: routes, parameters and their limits, as Danbooru has them."""

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from aiohttp import web
from aiohttp.typedefs import Handler

from demo.booru_posts import CATEGORY_NUMBERS, alias_rows, file_path, post_json
from demo.booru_query import Query, QueryError, parse
from demo.corpus import Post

DEFAULT_LIMIT = 20
MOST_PER_PAGE = 200
MOST_PAGES = 1000
CONTENT_TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "mp4": "video/mp4",
}


class Booru(Protocol):
    """What is served."""

    url: str
    posts: dict[int, Post]
    files: dict[str, bytes]
    aliases: dict[str, str]
    """Names of today by the tags' former ones."""
    account: tuple[str, str] | None


class ApiError(Exception):
    """An error that is answered as JSON with this status."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class Api:
    """The handlers over one booru's posts."""

    def __init__(self, booru: Booru) -> None:
        self._booru = booru

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/posts.json", self._answer(self._list)),
            web.get("/posts/{id}.json", self._answer(self._post)),
            web.get("/counts/posts.json", self._answer(self._count)),
            web.get("/tags.json", self._answer(self._tags)),
            web.get("/tag_aliases.json", self._answer(self._aliases)),
            web.get("/original/{ab}/{cd}/{name}", self._file),
            web.get("/{path:.*}", self._answer(self._nothing)),
        ]

    def _answer(self, handle: Callable[[web.Request], Any]) -> Handler:
        """A handler that answers with what `handle` returns, or with its error, as JSON."""

        async def handler(request: web.Request) -> web.StreamResponse:
            try:
                if "login" in request.query or self._is_unknown(request):
                    raise ApiError(401, "SessionLoader::AuthenticationFailure", "No accounts here.")
                return _json(200, handle(request))
            except QueryError as error:
                return _json(422, _error(error.kind, str(error)))
            except ApiError as error:
                return _json(error.status, _error(error.kind, str(error)))

        return handler

    def _is_unknown(self, request: web.Request) -> bool:
        """Whether a request names an account that there is not."""
        sent = request.headers.get("Authorization")
        return sent is not None and sent != basic(self._booru.account)

    def _list(self, request: web.Request) -> Any:
        if "md5" in request.query:
            return self._by_md5(request)
        query = parse(request.query.get("tags", ""))
        posts = self._page(query, request.query)
        return [_only(post_json(post, self._booru.url), request) for post in posts]

    def _page(self, query: Query, parameters: Mapping[str, str]) -> list[Post]:
        limit = query.limit if query.limit is not None else DEFAULT_LIMIT
        if parameters.get("limit", ""):
            limit = _whole(parameters["limit"], "limit")
        limit = max(1, min(limit, MOST_PER_PAGE))
        posts = [post for post in self._booru.posts.values() if query.matches(post)]
        page = parameters.get("page", "") or "1"
        if page[0] in "ab" and page[1:].isdigit():
            # A cursor forces the order of ids and silently discards `order:`. An ascending one
            # chooses from below but shows what it chose newest first, as all pages are.
            bound = int(page[1:])
            posts.sort(key=lambda post: -post.id)
            if page[0] == "b":
                return [post for post in posts if post.id < bound][:limit]
            return [post for post in posts if post.id > bound][-limit:]
        number = max(1, _whole(page, "page"))
        if number > MOST_PAGES:
            raise ApiError(
                410,
                "PaginationExtension::PaginationError",
                f"You cannot go beyond page {MOST_PAGES}.",
            )
        posts.sort(key=ORDERS[query.order])
        return posts[(number - 1) * limit : number * limit]

    def _by_md5(self, request: web.Request) -> Any:
        for post in sorted(self._booru.posts.values(), key=lambda post: post.id):
            if post.md5 == request.query["md5"].lower() and post.is_visible:
                return _only(post_json(post, self._booru.url), request)
        raise _not_found()

    def _post(self, request: web.Request) -> Any:
        identifier = request.match_info["id"]
        post = self._booru.posts.get(int(identifier)) if identifier.isdigit() else None
        if post is None:
            raise _not_found()
        return _only(post_json(post, self._booru.url), request)

    def _count(self, request: web.Request) -> Any:
        query = parse(request.query.get("tags", ""))
        return {"counts": {"posts": sum(map(query.matches, self._booru.posts.values()))}}

    def _tags(self, request: web.Request) -> Any:
        parameters = request.query
        asked = parameters.get("search[name_comma]") or parameters.get("search[name]")
        names = asked.split(",") if asked else None
        counts: Counter[tuple[str, str]] = Counter()
        for post in self._booru.posts.values():
            counts.update((tag, category) for category, tags in post.tags.items() for tag in tags)
        rows = [
            {
                "id": number,
                "name": name,
                "post_count": count,
                "category": CATEGORY_NUMBERS[category],
                "is_deprecated": False,
            }
            for number, ((name, category), count) in enumerate(sorted(counts.items()), 1)
            if names is None or name in names
        ]
        limit = _whole(parameters.get("limit") or str(DEFAULT_LIMIT), "limit")
        return rows[::-1][: max(1, min(limit, 1000))]

    def _aliases(self, request: web.Request) -> Any:
        names = request.query.get("search[consequent_name_comma]", "").split(",")
        rows = alias_rows(self._booru.aliases, names)
        limit = _whole(request.query.get("limit") or str(DEFAULT_LIMIT), "limit")
        return [_only(row, request) for row in rows[: max(1, min(limit, 1000))]]

    def _nothing(self, request: web.Request) -> Any:
        raise _not_found()

    async def _file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        md5, _, extension = name.partition(".")
        content = self._booru.files.get(md5)
        shown = any(
            file_path(post) == request.path and post.is_visible
            for post in self._booru.posts.values()
        )
        if content is None or not shown:
            return web.Response(status=404, text="Not Found")
        return _ranged(request, content, md5, CONTENT_TYPES[extension])


def basic(account: tuple[str, str] | None) -> str | None:
    """The Authorization header of an account."""
    if account is None:
        return None
    return "Basic " + base64.b64encode(":".join(account).encode()).decode()


ORDERS: Mapping[str, Callable[[Post], tuple[int, int]]] = {
    "id_desc": lambda post: (0, -post.id),
    "id_asc": lambda post: (0, post.id),
    "score": lambda post: (-post.score, -post.id),
    "score_asc": lambda post: (post.score, -post.id),
}


def _ranged(request: web.Request, content: bytes, md5: str, kind: str) -> web.Response:
    """The file, or the rest of it where that is asked for and it is still the same file."""
    etag = f'"{md5}"'
    asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    if asked is None or request.headers.get("If-Range", etag) != etag:
        return web.Response(body=content, content_type=kind, headers={"ETag": etag})
    start = int(asked[1])
    if start >= len(content):
        headers = {"Content-Range": f"bytes */{len(content)}"}
        return web.Response(status=416, headers=headers)
    headers = {"ETag": etag, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
    return web.Response(status=206, body=content[start:], content_type=kind, headers=headers)


def _only(post: dict[str, Any], request: web.Request) -> dict[str, Any]:
    """The keys that `only=` names, or all; names that are no keys are passed over."""
    only = request.query.get("only")
    return post if not only else {key: post[key] for key in only.split(",") if key in post}


def _whole(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ApiError(
            400, "ActionController::BadRequest", f"{name}={text} is no number."
        ) from None


def _not_found() -> ApiError:
    return ApiError(404, "ActiveRecord::RecordNotFound", "That record was not found.")


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"success": False, "error": kind, "message": message, "backtrace": []}


def _json(status: int, content: Any) -> web.Response:
    return web.Response(status=status, text=json.dumps(content), content_type="application/json")
