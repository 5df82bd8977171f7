"""What can be made to go wrong with an answer, by a plan that sees every request: for tests."""

import asyncio
import gzip
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web

Kind = Literal["page", "post", "count", "tags", "aliases", "file", "other"]


@dataclass(frozen=True)
class Hit:
    """One request as the server saw it. `nth` counts the requests of this kind and name, from 1."""

    kind: Kind
    name: str
    """A file's md5, a post's id, the search of a page."""
    nth: int
    path: str
    """With its query string."""
    user_agent: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the request, by their names in lower case."""
    at: float = field(default_factory=time.monotonic)
    """Seconds, of the server's monotonic clock."""


@dataclass(frozen=True)
class Fault:
    """How an answer goes wrong. Fields that are not set leave it as it is."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    stall: float = 0.0
    """Seconds of silence: before the answer, or in it where `cut` is set."""
    cut: int | None = None
    """The connection is closed after so many bytes of the body, though all were announced."""
    drip: float = 0.0
    """With `cut`: the rest comes, sixteen bytes at a time and so many seconds apart."""
    chunked: bool = False
    """With `cut`: nothing is announced, the body comes in chunks of which the last is missing."""
    raw: bytes | None = None
    """Sent as it is in place of head and body, and the connection closed."""
    flip: bool = False
    """One bit of the body is another."""
    gzip: bool = False
    """The body comes compressed, though no one asked for that."""
    whole: bool = False
    """A range is not heeded: all of the file comes, with status 200."""


FaultPlan = Callable[[Hit], Fault | None]


def no_faults(hit: Hit) -> Fault | None:
    """The plan of a server that works."""
    return None


async def spoil(
    request: web.Request, response: web.StreamResponse, fault: Fault
) -> web.StreamResponse:
    """`response` after `fault` has happened to it."""
    if fault.raw is not None:
        await asyncio.sleep(fault.stall)
        if request.transport is not None:
            request.transport.write(fault.raw)
            request.transport.close()
        return response
    body = fault.body
    if body is None:
        plain = response.body if isinstance(response, web.Response) else b""
        body = bytes(plain) if isinstance(plain, bytes | bytearray) else b""
    content_type = response.content_type if fault.status is None else "text/plain"
    status = response.status if fault.status is None else fault.status
    headers = {k: v for k, v in response.headers.items() if k in ("ETag", "Content-Range")}
    if fault.status is not None or fault.body is not None:
        headers = {}
    headers |= fault.headers
    if fault.flip and body:
        body = bytes([body[0] ^ 1]) + body[1:]
    if fault.gzip:
        body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
    if fault.cut is None:
        await asyncio.sleep(fault.stall)
        return web.Response(status=status, headers=headers, body=body, content_type=content_type)
    answer = web.StreamResponse(status=status, headers=headers)
    answer.content_type = content_type
    if fault.chunked:
        answer.enable_chunked_encoding()
    else:
        answer.content_length = len(body)
    await answer.prepare(request)
    await answer.write(body[: fault.cut])
    rest = range(fault.cut, len(body), 16) if fault.drip else ()
    for start in rest:
        await asyncio.sleep(fault.drip)
        await answer.write(body[start : start + 16])
    await asyncio.sleep(fault.stall)
    if request.transport is not None:
        request.transport.close()
    return answer
