"""What can be made to go wrong with an answer, by a plan that sees every request: for tests."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web

Kind = Literal["page", "post", "count", "tags", "file", "other"]


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


FaultPlan = Callable[[Hit], Fault | None]


def no_faults(hit: Hit) -> Fault | None:
    """The plan of a server that works."""
    return None


async def spoil(
    request: web.Request, response: web.StreamResponse, fault: Fault
) -> web.StreamResponse:
    """`response` after `fault` has happened to it."""
    body = fault.body
    if body is None:
        plain = response.body if isinstance(response, web.Response) else b""
        body = bytes(plain) if isinstance(plain, bytes | bytearray) else b""
    content_type = response.content_type if fault.status is None else "text/plain"
    status = response.status if fault.status is None else fault.status
    if fault.cut is None:
        await asyncio.sleep(fault.stall)
        return web.Response(
            status=status, headers=fault.headers, body=body, content_type=content_type
        )
    answer = web.StreamResponse(status=status, headers=fault.headers)
    answer.content_type = content_type
    answer.content_length = len(body)
    await answer.prepare(request)
    await answer.write(body[: fault.cut])
    await asyncio.sleep(fault.stall)
    if request.transport is not None:
        request.transport.close()
    return answer
