"""Answers of an API that never end, unfold without end or trickle: they are not waited for."""

import json
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import pytest
import requests

from demo.booru import BooruServer, running
from demo.booru_faults import Fault, Hit
from demo.corpus import Corpus
from pipeline.download.answers import CHUNK, MOST_BYTES, Client
from pipeline.download.patience import Patience
from pipeline.download.sites import Site, dialect_of
from pipeline.errors import UrushiError

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
ZEROS = bytes(CHUNK)
SLOWLY = 0.02
"""Seconds between the bytes of what trickles."""

Pieces = Callable[[], Iterator[bytes]]


def head(*lines: str) -> bytes:
    return "\r\n".join(
        ("HTTP/1.1 200 OK", "Content-Type: application/json", *lines, "", "")
    ).encode()


def bomb() -> Iterator[bytes]:
    """4 GiB of zeros in 4 MB: pieces that were packed one by one may follow one another."""
    packing = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    first = packing.compress(bytes(MIB)) + packing.flush(zlib.Z_FULL_FLUSH)
    again = packing.compress(bytes(MIB)) + packing.flush(zlib.Z_FULL_FLUSH)
    return chain((head("Content-Encoding: gzip"), first), repeat(again, 4095))


ENDLESS: dict[str, Pieces] = {
    "no length": lambda: chain((head(),), repeat(ZEROS)),
    "a length of gigabytes": lambda: chain((head(f"Content-Length: {1 << 40}"),), repeat(ZEROS)),
    "chunks": lambda: chain(
        (head("Transfer-Encoding: chunked"),), repeat(b"10000\r\n" + ZEROS + b"\r\n")
    ),
    "one chunk": lambda: chain(
        (head("Transfer-Encoding: chunked"), b"ffffffffff\r\n"), repeat(ZEROS)
    ),
    "no end to a chunk's length": lambda: chain(
        (head("Transfer-Encoding: chunked"), b"1;"), repeat(b"x" * CHUNK)
    ),
    "a bomb": bomb,
    "nothing, packed without end": lambda: chain(
        (head("Content-Encoding: gzip"), zlib.compressobj(wbits=31).flush()[:10]),
        repeat(b"\0\0\0\xff\xff" * 100_000),
    ),
    "a redirect": lambda: chain(
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.invalid/\r\n\r\n",), repeat(ZEROS)
    ),
    "an error": lambda: chain((b"HTTP/1.1 500 Oops\r\n\r\n",), repeat(ZEROS)),
    "no end to the head": lambda: chain((b"HTTP/1.1 200 OK\r\nX: ",), repeat(b"x" * CHUNK)),
}

ASKING = """
import re, sys
from pathlib import Path
import requests
from pipeline.download.answers import Client
from pipeline.download.patience import Patience
from pipeline.download.sites import Site, dialect_of
def most():  # KiB that were in memory at once. Not ru_maxrss, which knows of the parent too.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
for url in sys.argv[1:]:
    client = Client(Site(dialect_of("danbooru"), url, "urushi/test"), Patience())
    before = most()
    try:
        answer = client.get(url, {})
        said = f"{answer.status} {len(answer.content)} {answer.unread}"
    except requests.RequestException as error:
        said = type(error).__name__
    client.close()
    print(most() - before, said, flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_an_answer_without_end_takes_no_memory_without_end(pouring) -> None:
    servers = [pouring(pieces) for pieces in ENDLESS.values()]
    command = [sys.executable, "-c", ASKING, *(server.url for server in servers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = dict(
        zip(ENDLESS, (line.split(" ", 1) for line in done.stdout.splitlines()), strict=True)
    )
    for name, (grown, _) in said.items():
        assert int(grown) * 1024 < 3 * MOST_BYTES, name  # KiB; the pieces, and them joined.
    for name, server in zip(ENDLESS, servers, strict=True):
        assert server.sent < 2 * MOST_BYTES, name
    too_long = "it is longer than 16 MiB, several times as long as any page"
    for name, (_, words) in said.items():
        if name in ("no end to the head", "no end to a chunk's length"):
            assert words == "ConnectionError", name
        else:
            status = {"a redirect": 302, "an error": 500}.get(name, 200)
            assert words == f"{status} 0 {too_long}", name


def test_what_never_ends_is_asked_for_twice_and_named(downloading, pouring) -> None:
    server = pouring(ENDLESS["no length"])
    downloading.write(server.url)
    words = (
        rf"{server.url} answers is not danbooru's API: it is longer than 16 MiB.*"
        r"Check \[download\].site and \[download\].host.*same command again"
    )
    with pytest.raises(UrushiError, match=words):
        downloading.run()
    assert server.connections == 2


def test_a_page_that_is_too_long_leaves_the_search_where_it_was(
    downloading, corpus: Corpus
) -> None:
    long = b"[" + b" " * MOST_BYTES + b"]"
    faults: list[Fault | None] = [Fault(body=long)]

    def plan(hit: Hit) -> Fault | None:
        return faults[0] if hit.kind == "page" and "page=b" in hit.path else None

    with running(corpus=corpus, faults=plan) as booru:
        downloading.write(booru.url)
        with pytest.raises(UrushiError, match="longer than 16 MiB"):
            downloading.run()
        assert downloading.rows("SELECT count(*) > 0 FROM post") == [(1,)]
        faults[0] = None
        before = booru.count("page")
        downloading.run()
        assert set(downloading.images()) == corpus.wanted()
        assert all("page=b" in hit.path for hit in booru.hits[before:] if hit.kind == "page")


def test_an_answer_of_just_the_bound_is_read(serving) -> None:
    exact = json.dumps([1]).encode().ljust(MOST_BYTES)
    booru: BooruServer = serving(lambda hit: Fault(body=exact, gzip=hit.nth == 2))
    client = Client(Site(dialect_of("danbooru"), booru.url, "urushi/test"), Patience())
    for _ in range(2):
        answer = client.get(booru.url, {})
        assert (answer.content, answer.unread) == (exact, "")
    client.close()


def test_a_sites_own_words_are_passed_on_in_bounds(downloading, serving) -> None:
    said = json.dumps({"success": False, "message": "No\x1b[2J\r\n way! " + "x" * 10_000})
    booru = serving(lambda hit: Fault(status=403, body=said.encode()))
    downloading.write(booru.url)
    with pytest.raises(UrushiError, match=r"keeps us out \(403: No \[2J way! x+\)") as error:
        downloading.run()
    assert len(str(error.value)) < 500


TRICKLES: dict[str, Pieces] = {
    "the head": lambda: chain((b"HTTP/1.1 200 OK\r\nX: ",), repeat(b"x")),
    "heads of nothing": lambda: repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "the body": lambda: chain((head("Content-Length: 9000"),), repeat(b"[")),
    "a body without a length": lambda: chain((head(),), repeat(b"[")),
    "chunks": lambda: chain((head("Transfer-Encoding: chunked"),), repeat(b"1\r\n[\r\n")),
    "the handshake": lambda: chain((b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc",), repeat(b"\x03")),
}
"""Bytes that go on coming, so that no wait for one is long."""


@pytest.mark.parametrize("name", TRICKLES)
def test_an_answer_that_trickles_is_given_up(pouring, name: str, hurried: Patience) -> None:
    server = pouring(TRICKLES[name], SLOWLY)
    address = server.url.replace("http:", "https:") if name == "the handshake" else server.url
    body = "body" in name or name == "chunks"
    patience = replace(hurried, answer=9 if body else 0.4, page=0.4 if body else 9)
    client = Client(Site(dialect_of("danbooru"), address, "urushi/test"), patience)
    began = time.monotonic()
    with pytest.raises(requests.Timeout):
        client.get(address, {})
    assert 0.4 <= time.monotonic() - began < 3
    client.close()


def test_a_site_that_trickles_is_named(downloading, pouring, hurried: Patience) -> None:
    server = pouring(TRICKLES["the body"], SLOWLY)
    downloading.write(server.url)
    with pytest.raises(
        UrushiError, match=f"{server.url} cannot be reached: it does not .* in time"
    ):
        downloading.run(patience=replace(hurried, tries=2, page=0.3))
    assert server.connections == 2


def test_a_page_that_trickled_is_asked_for_again(
    downloading, corpus: Corpus, hurried: Patience
) -> None:
    fault = Fault(cut=20, drip=SLOWLY)
    plan = lambda hit: fault if hit.kind == "page" and hit.nth == 1 else None  # noqa: E731
    with running(corpus=corpus, faults=plan) as booru:
        downloading.write(booru.url)
        downloading.run(patience=replace(hurried, page=0.4))
    assert set(downloading.images()) == corpus.wanted()


def test_a_deadline_that_was_kept_cuts_nothing_later(
    downloading, serving, corpus: Corpus, hurried: Patience
) -> None:
    """Each request has its own; together they take longer than one may."""
    booru = serving(lambda hit: Fault(stall=0.15))
    client = Client(
        Site(dialect_of("danbooru"), booru.url, "urushi/test"),
        replace(hurried, answer=0.6, page=0.6),
    )
    for number in range(6):
        assert client.get(f"{booru.url}/posts.json?limit=1", {}).status == 200, number
    client.close()
