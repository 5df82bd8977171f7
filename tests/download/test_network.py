"""Networks that half work: heads of files that trickle, and names with an address that is dead."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import pytest
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from demo.booru import BooruServer, running
from demo.booru_faults import Fault, Hit
from demo.booru_posts import post_json
from demo.corpus import Corpus
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.connecting import HEAD_START, connected
from pipeline.download.fetch import Interrupted, Promise, open_session, receive
from pipeline.download.patience import Patience
from pipeline.download.sites import Site, dialect_of
from pipeline.errors import UrushiError

SLOWLY = 0.02
HEADS = {
    "never": lambda: repeat(b""),
    "a byte now and then": lambda: chain((b"HTTP/1.1 200 OK\r\nX: ",), repeat(b"x")),
    "heads of nothing": lambda: repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "the handshake": lambda: chain((b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc",), repeat(b"\x03")),
}
NAME = "booru.test"


@pytest.mark.parametrize("name", HEADS)
def test_a_head_of_a_file_that_trickles_is_given_up(
    pouring, hurried: Patience, tmp_path: Path, name: str
) -> None:
    server = pouring(HEADS[name], SLOWLY)
    address = server.url.replace("http:", "https:") if name == "the handshake" else server.url
    site = Site(dialect_of("danbooru"), address, "urushi/test")
    patience = replace(hurried, answer=0.4, silence=9)
    promise, folder = Promise("0" * 32, 5, 10**8), DatasetFolder(tmp_path)

    async def attempt() -> None:
        async with open_session(site, patience, 1) as session:
            url = f"{address}/x.png"
            await receive(session, site, url, promise, folder, patience, fresh=False, begun=False)

    began = time.monotonic()
    with pytest.raises(Interrupted, match="does not answer in time"):
        asyncio.run(attempt())
    assert 0.4 <= time.monotonic() - began < 3


def test_a_file_whose_head_trickles_is_a_row(
    downloading, serving, pouring, corpus: Corpus, hurried: Patience
) -> None:
    server = pouring(HEADS["a byte now and then"], SLOWLY)
    wanted = [post for post in corpus.posts if post.md5 in corpus.wanted()][:3]

    def elsewhere(hit: Hit) -> Fault | None:
        if hit.kind != "page" or hit.nth > 1:
            return None
        posts = [post_json(post, booru.url) for post in wanted]
        posts[0]["file_url"] = f"{server.url}/x.png"
        return Fault(body=json.dumps(posts).encode())

    booru = serving(elsewhere)
    downloading.write(booru.url, limit=3)
    downloading.run(patience=replace(hurried, tries=2, answer=0.3))
    assert set(downloading.images()) == {post.md5 for post in wanted[1:]}
    assert "failed: it does not answer in time" in downloading.reason(wanted[0].id)
    assert server.connections == 2


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those that NAME has, in the order in which they are told; every other name is as it is."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("needs IPv6 on loopback")
    told = ["::1", "127.0.0.1"]
    known = socket.getaddrinfo

    def tell(host, port, family=0, type=0, proto=0, flags=0):
        if host != NAME:
            return known(host, port, family, type, proto, flags)
        return [row for one in told for row in known(one, port, family, type, proto, flags)]

    monkeypatch.setattr(socket, "getaddrinfo", tell)
    return told


@pytest.fixture
def swallowing() -> Iterator[Callable[[int], None]]:
    """Listens on a port of ::1 and takes no connection: who knocks there hears nothing."""
    with ExitStack() as stack:

        def start(port: int) -> None:
            listener = stack.enter_context(socket.socket(socket.AF_INET6))
            listener.bind(("::1", port))
            listener.listen(0)
            stack.enter_context(socket.create_connection(("::1", port)))  # Has the only place.

        yield start


def named(booru: BooruServer) -> int:
    """Calls a booru by NAME; its port."""
    port = int(booru.url.rpartition(":")[2])
    booru.url = f"http://{NAME}:{port}"
    return port


@pytest.mark.parametrize("dead", ["refuses", "swallows"])
def test_an_address_that_is_dead_is_passed_over(
    downloading, addresses, swallowing, booru: BooruServer, corpus: Corpus, hurried, dead: str
) -> None:
    """IPv6 that is set up and leads nowhere: of the name's two addresses one works."""
    port = named(booru)
    if dead == "swallows":
        swallowing(port)
    downloading.write(booru.url)
    began = time.monotonic()
    downloading.run(patience=replace(hurried, connect=60))
    assert time.monotonic() - began < 30  # Nothing waited for it as long as for a dead site.
    assert set(downloading.images()) == corpus.wanted()
    flawed = {post.md5 for post in corpus.posts if post.flaw}
    assert {md5 for (md5,) in downloading.rows("SELECT md5 FROM job WHERE attempts > 0")} <= flawed


@pytest.mark.parametrize("dead", ["refuses", "swallows"])
def test_files_behind_dead_addresses_are_the_sites_trouble(
    downloading, addresses, swallowing, serving, hurried: Patience, dead: str
) -> None:
    def go_down(hit: Hit) -> None:
        addresses[:] = ["::1"]  # The API's connection stands.

    booru = serving(go_down)
    port = named(booru)
    if dead == "swallows":
        swallowing(port)
    downloading.write(booru.url)
    why = {"refuses": "the connection was refused", "swallows": "it does not answer in time"}
    with pytest.raises(UrushiError, match=f"{booru.url} cannot be reached: {why[dead]}"):
        downloading.run(patience=replace(hurried, connect=0.4))
    assert booru.count("file") == 0
    assert downloading.rows("SELECT count(*) FROM job WHERE state = 'failed'") == [(0,)]


@pytest.mark.parametrize("dead", ["refuses", "swallows"])
def test_a_site_of_which_all_addresses_are_dead_is_named(
    downloading, addresses, swallowing, hurried: Patience, dead: str
) -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        port = taken.getsockname()[1]
    if dead == "swallows":
        swallowing(port)
    addresses[:] = ["::1", "::1"]
    downloading.write(f"http://{NAME}:{port}")
    why = {"refuses": "the connection was refused", "swallows": "it does not answer in time"}
    with pytest.raises(UrushiError, match=f"{NAME}:{port} cannot be reached: {why[dead]}"):
        downloading.run(patience=replace(hurried, tries=2, connect=0.2))


@pytest.fixture
def line() -> Iterator[HTTPConnection]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield HTTPConnection(NAME, server.getsockname()[1], timeout=20)


@pytest.mark.parametrize("first", [["::1"], ["::1"] * 5, ["127.0.0.2"], ["fe80::1"], []])
def test_the_api_is_asked_at_the_address_that_answers_first(
    addresses, swallowing, line: HTTPConnection, first: list[str]
) -> None:
    """Others refuse, cannot be reached at all, or say nothing; none is left open."""
    addresses[:] = [*first, "127.0.0.1", "::1"]
    swallowing(line.port)
    before = len(os.listdir("/proc/self/fd"))
    began = time.monotonic()
    with connected(line) as found:
        assert found.getpeername() == ("127.0.0.1", line.port)
        assert found.gettimeout() == 20
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert len(os.listdir("/proc/self/fd")) == before + 1
    silent = first.count("::1")
    # Far below the 20 s for which a silent one is waited for, however busy the machine.
    assert silent * HEAD_START <= time.monotonic() - began < 15


def test_of_a_name_without_an_address_that_answers_the_reason_is_told(
    addresses, swallowing, line: HTTPConnection
) -> None:
    addresses[:] = ["127.0.0.2", "127.0.0.3"]
    with pytest.raises(NewConnectionError) as error:
        connected(line)
    assert isinstance(error.value.__cause__, ConnectionRefusedError)
    addresses.clear()
    with pytest.raises(NewConnectionError, match="no address"):
        connected(line)
    swallowing(line.port)
    addresses[:] = ["::1", "127.0.0.2"]
    line.timeout = 0.4
    with pytest.raises(ConnectTimeoutError):
        connected(line)


def test_a_booru_may_be_named_by_an_ipv6_address(
    downloading, corpus: Corpus, addresses: list[str]
) -> None:
    with running(host="::1", corpus=corpus) as booru:
        booru.url = f"http://[::1]:{booru.url.rpartition(':')[2]}"
        downloading.write(booru.url)
        downloading.run()
    assert set(downloading.images()) == corpus.wanted()


def test_a_name_that_is_too_long_is_told(downloading) -> None:
    downloading.write(f"http://{'x' * 70}.test")
    with pytest.raises(UrushiError, match=r"xx\.test cannot be reached"):
        downloading.run()
