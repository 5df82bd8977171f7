"""The embedded booru: a loopback HTTP server that answers as Danbooru does, over drawn pictures.

Lists by tags with numbered pages and id cursors, single posts, counts, tags, and the files; its
limits, its JSON errors, and its distaste for clients that do not say who they are. By hand:

    urushi booru

In a process that wants one beside it:

    with running() as booru:
        ...  # booru.url
"""

import asyncio
import errno
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache

from aiohttp import web
from aiohttp.typedefs import Handler

from demo.booru_api import Api
from demo.booru_dialects import Dialects, Family
from demo.booru_faults import FaultPlan, Hit, Kind, no_faults, spoil
from demo.corpus import Corpus, Post, generate
from pipeline.errors import RequestError, UrushiError

REFUSED_AGENTS = ("mozilla", "python-requests", "python-urllib", "python/", "aiohttp", "curl/")
"""Browsers, which no program is, and libraries whose author did not say who he is."""


class BooruServer:
    """A running server. `posts` and `files` may be changed between requests, as moderators do."""

    def __init__(
        self, corpus: Corpus, faults: FaultPlan = no_faults, family: Family = "danbooru"
    ) -> None:
        self.family: Family = family
        self.account: tuple[str, str] | None = None
        """The one that it knows: a name and a key."""
        self.untold: set[str] = set()
        self.aliases: dict[str, str] = dict(corpus.aliases)
        self.corpus = corpus
        self.posts: dict[int, Post] = {post.id: post for post in corpus.posts}
        self.files: dict[str, bytes] = dict(corpus.files)
        self.faults = faults
        self.url = ""
        """http://HOST:PORT, without a slash at the end."""
        self.hits: list[Hit] = []
        self.most_files_at_once = 0
        self._files_now = 0
        self._seen: Counter[tuple[Kind, str]] = Counter()

    def count(self, kind: Kind | None = None) -> int:
        """Requests so far, of one kind or of all."""
        return sum(1 for hit in self.hits if kind in (None, hit.kind))

    def application(self) -> web.Application:
        @web.middleware
        async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._gate(request, handler)

        application = web.Application(middlewares=[gate])
        if self.family != "danbooru":
            application.add_routes(Dialects(self).routes())
        application.add_routes(Api(self).routes())
        return application

    async def _gate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        hit = self._hit(request)
        agent = hit.user_agent.lower()
        if not agent or any(refused in agent for refused in REFUSED_AGENTS):
            return web.Response(
                status=403,
                headers={"cf-mitigated": "challenge"},
                content_type="text/html",
                text="<html><title>Just a moment...</title>Say who you are in your User-Agent: "
                "a program's name and how to reach you.</html>",
            )
        self._files_now += hit.kind == "file"
        self.most_files_at_once = max(self.most_files_at_once, self._files_now)
        try:
            fault = self.faults(hit)
            if fault is not None and fault.whole:
                # As a server that does not know what a range is.
                request = request.clone(headers=_without_range(request))
            response = await handler(request)
            return response if fault is None else await spoil(request, response, fault)
        finally:
            self._files_now -= hit.kind == "file"

    def _hit(self, request: web.Request) -> Hit:
        kind, name = kind_and_name(request)
        self._seen[kind, name] += 1
        agent = request.headers.get("User-Agent", "")
        headers = {key.lower(): value for key, value in request.headers.items()}
        hit = Hit(kind, name, self._seen[kind, name], request.path_qs, agent, headers)
        self.hits.append(hit)
        return hit


def kind_and_name(request: web.Request) -> tuple[Kind, str]:
    """What a request is for."""
    path = request.path
    if path.startswith("/original/"):
        return "file", path.rpartition("/")[2].partition(".")[0]
    if path == "/index.php":
        what: Kind = "tags" if request.query.get("s") == "tag" else "page"
        return (
            ("post", request.query["id"])
            if "id" in request.query
            else (what, request.query.get("tags", ""))
        )
    if path == "/post.json":
        return "page", request.query.get("tags", "")
    if path == "/post.xml":
        return "count", request.query.get("tags", "")
    if path == "/posts.json":
        return "page", request.query.get("tags", "")
    if path.startswith("/posts/"):
        return "post", path.removeprefix("/posts/").removesuffix(".json")
    if path == "/counts/posts.json":
        return "count", request.query.get("tags", "")
    if path in ("/tag_aliases.json", "/tag/summary.json"):
        return "aliases", request.query_string
    if path == "/tags.json":
        return "tags", request.query_string
    return "other", path


def _without_range(request: web.Request) -> dict[str, str]:
    return {key: value for key, value in request.headers.items() if key.lower() != "range"}


@cache
def _embedded() -> Corpus:
    """The corpus of the demo, drawn once a process: it takes some seconds."""
    return generate()


@contextmanager
def running(
    port: int = 0,
    host: str = "127.0.0.1",
    *,
    corpus: Corpus | None = None,
    faults: FaultPlan = no_faults,
    family: Family = "danbooru",
) -> Iterator[BooruServer]:
    """A booru in a thread of this process, stopped at the end. Port 0 takes a free one.

    Raises:
        RequestError: the port is taken or not allowed.
    """
    server = BooruServer(_embedded() if corpus is None else corpus, faults, family)
    loop = asyncio.new_event_loop()
    ready: Future[int] = Future()
    stop = asyncio.Event()
    thread = threading.Thread(
        target=_run, args=(loop, server, host, port, ready, stop), name="booru", daemon=True
    )
    thread.start()
    try:
        server.url = f"http://{host}:{_port(ready, host, port)}"
        yield server
    finally:
        if not ready.exception():
            loop.call_soon_threadsafe(stop.set)
        thread.join()


def serve(
    port: int, host: str = "127.0.0.1", on_ready: Callable[[str], None] | None = None
) -> None:
    """Serves until the process is interrupted. `on_ready` is called with the address.

    Raises:
        RequestError: the port is taken or not allowed.
    """
    with running(port, host) as server:
        if on_ready is not None:
            on_ready(server.url)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


def _port(ready: Future[int], host: str, port: int) -> int:
    try:
        return ready.result()
    except OSError as error:
        remedy = {
            errno.EADDRINUSE: "Another program uses it: choose another --port, or stop that one.",
            errno.EACCES: "Ports under 1024 belong to the system: choose another --port.",
        }.get(error.errno or 0, "Choose another --port.")
        raise RequestError(f"The booru cannot listen on {host}:{port}. {remedy}") from None


def _run(
    loop: asyncio.AbstractEventLoop,
    server: BooruServer,
    host: str,
    port: int,
    ready: "Future[int]",
    stop: asyncio.Event,
) -> None:
    async def live() -> None:
        runner = web.AppRunner(
            server.application(), handle_signals=False, access_log=None, shutdown_timeout=0.2
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            try:
                await site.start()
                bound = runner.addresses[0][1]
            except OSError as error:
                ready.set_exception(error)
                return
            ready.set_result(bound)
            await stop.wait()
        finally:
            await runner.cleanup()

    try:
        loop.run_until_complete(live())
        loop.run_until_complete(loop.shutdown_asyncgens())
    except Exception as error:  # Whoever waits for the port must hear of it, whatever it was.
        if not ready.done():
            ready.set_exception(UrushiError(f"The booru could not start: {error}"))
        raise
    finally:
        loop.close()
