"""Files that come in parts, twice, or wrong: each fault of the wire is one line of a table."""

import asyncio
import hashlib
import http.server
import os
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from demo.booru import BooruServer, running
from demo.booru_faults import Fault, Hit
from demo.corpus import Corpus, Post
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.fetch import open_session, receive
from pipeline.download.md5 import Md5
from pipeline.download.parts import WORTH_RESUMING, part_of
from pipeline.download.patience import Patience
from pipeline.download.quarantine import Promise
from pipeline.download.sites import Site, dialect_of
from pipeline.errors import UrushiError

HALF = WORTH_RESUMING + 1000


@pytest.fixture(scope="module")
def heavy(corpus: Corpus) -> Corpus:
    """The corpus with one post whose file is worth resuming: a PNG with much behind its end."""
    post = next(
        p for p in reversed(corpus.posts) if p.md5 in corpus.wanted() and p.extension == "png"
    )
    content = corpus.files[post.md5] + os.urandom(2 * WORTH_RESUMING)
    md5 = hashlib.md5(content).hexdigest()
    large = replace(post, md5=md5, bytes=len(content))
    posts = tuple(large if p.id == post.id else p for p in corpus.posts)
    return Corpus(posts, {**corpus.files, md5: content})


@pytest.fixture
def large(heavy: Corpus) -> Post:
    return max((p for p in heavy.posts), key=lambda post: post.bytes)


def head(length: int | None, body: bytes, status: str = "200 OK") -> bytes:
    """An answer byte by byte; without a length it ends where the connection does."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: image/png", "Connection: close"]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Case:
    """What befalls the first request, or the first two, and how the ones after it should look."""

    faults: Callable[[bytes], tuple[Fault, ...]]
    asks_for_rest: bool
    requests: int


CASES = {
    "reset in the middle": Case(lambda b: (Fault(cut=HALF),), True, 2),
    "chunks of which the last is missing": Case(
        lambda b: (Fault(cut=HALF, chunked=True),), True, 2
    ),
    "reset twice": Case(lambda b: (Fault(cut=HALF), Fault(cut=1000)), True, 3),
    "reset early": Case(lambda b: (Fault(cut=1000),), False, 2),
    "no length, cut off": Case(lambda b: (Fault(raw=head(None, b[:HALF])),), False, 2),
    "short of its own length": Case(lambda b: (Fault(raw=head(len(b), b[:HALF])),), True, 2),
    "a length that is too small": Case(lambda b: (Fault(raw=head(HALF, b)),), False, 2),
    "longer than stated": Case(lambda b: (Fault(body=b + b"x"),), False, 2),
    "the range is not heeded": Case(lambda b: (Fault(cut=HALF), Fault(whole=True)), True, 2),
    "the wrong range": Case(
        lambda b: (
            Fault(cut=HALF),
            Fault(headers={"Content-Range": f"bytes 5-{len(b) - 1}/{len(b)}"}),
        ),
        False,
        3,
    ),
    "a range of another file": Case(
        lambda b: (Fault(cut=HALF), Fault(headers={"Content-Range": f"bytes {HALF}-9/10"})),
        False,
        3,
    ),
    "a range without a word on which": Case(
        lambda b: (Fault(cut=HALF), Fault(headers={"Content-Range": ""})), False, 3
    ),
    "416": Case(lambda b: (Fault(cut=HALF), Fault(status=416)), False, 3),
    "the rest is of another copy": Case(lambda b: (Fault(cut=HALF), Fault(flip=True)), False, 3),
    "changed meanwhile": Case(
        lambda b: (Fault(cut=HALF, headers={"ETag": '"of-yesterday"'}),), True, 2
    ),
    "compressed, though no one asked": Case(lambda b: (Fault(gzip=True),), False, 1),
    "compressed and cut off": Case(lambda b: (Fault(gzip=True, cut=HALF),), True, 2),
    "one bit is another": Case(lambda b: (Fault(flip=True),), False, 2),
    "silence after the last byte": Case(
        lambda b: (Fault(cut=len(b), stall=5, chunked=True),), False, 1
    ),
    "closed after the last byte, as if cut": Case(
        lambda b: (Fault(raw=head(len(b) + 1, b)),), False, 1
    ),
    "206 that no one asked for": Case(lambda b: (Fault(status=206),), False, 2),
    "204": Case(lambda b: (Fault(status=204, body=b""),), False, 2),
    "304": Case(lambda b: (Fault(status=304, body=b""),), False, 2),
    "521": Case(lambda b: (Fault(status=521),), False, 2),
    "421": Case(lambda b: (Fault(status=421),), False, 2),
    "429 until the epoch": Case(
        lambda b: (Fault(status=429, headers={"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}),),
        False,
        2,
    ),
    "an HTML page of the right type": Case(
        lambda b: (Fault(body=b"<html>".ljust(len(b)), headers={"Content-Type": "image/png"}),),
        False,
        2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_file_comes_all_the_same(downloading, heavy: Corpus, large: Post, name: str) -> None:
    case = CASES[name]
    faults = case.faults(heavy.files[large.md5])

    def plan(hit: Hit) -> Fault | None:
        return faults[hit.nth - 1] if hit.name == large.md5 and hit.nth <= len(faults) else None

    with running(corpus=heavy, faults=plan) as booru:
        downloading.write(booru.url, limit=8)
        downloading.run()
        hits = [hit for hit in booru.hits if hit.name == large.md5]
    assert downloading.files()[large.md5].read_bytes() == heavy.files[large.md5]
    assert large.md5 in downloading.images()
    assert len(hits) == case.requests
    assert ("range" in hits[-1].headers) == case.asks_for_rest
    assert not any("range" in hit.headers for hit in hits[:1])
    assert list(downloading.folder.parts.iterdir()) == []
    assert not list(downloading.folder.quarantine.glob(f"{large.md5}.*"))


def test_what_waits_to_be_hashed_is_bounded(
    downloading, heavy: Corpus, large: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chunk is waited for here: none is lost and none comes twice, cut off or not."""
    waits = list[int]()
    settle = Md5.settle

    async def counted(md5: Md5) -> str:
        waits.append(1)
        return await settle(md5)

    monkeypatch.setattr(Md5, "settle", counted)
    monkeypatch.setattr("pipeline.download.md5.MOST_BEHIND", -1)
    plan = lambda hit: Fault(cut=HALF) if hit.name == large.md5 and hit.nth == 1 else None  # noqa: E731
    with running(corpus=heavy, faults=plan) as booru:
        downloading.write(booru.url, limit=8)
        downloading.run()
    assert downloading.files()[large.md5].read_bytes() == heavy.files[large.md5]
    assert len(waits) > 2 * len(downloading.files())


def test_a_part_is_asked_for_with_what_names_its_copy(
    downloading, heavy: Corpus, large: Post
) -> None:
    sick = [True]

    def plan(hit: Hit) -> Fault | None:
        if hit.name != large.md5 or not sick[0]:
            return None
        return Fault(cut=HALF) if hit.nth == 1 else Fault(status=500)

    with running(corpus=heavy, faults=plan) as booru:
        downloading.write(booru.url, limit=8)
        downloading.run()  # Gives it up after four attempts; what came of it stays.
        assert part_of(downloading.folder, large.md5).path.stat().st_size == HALF
        sick[0] = False
        (downloading.folder.images / "receipt.json").unlink()
        downloading.run()
        hit = [hit for hit in booru.hits if hit.name == large.md5][-1]
        assert hit.headers["range"] == f"bytes={HALF}-"
        assert hit.headers["if-range"] == f'"{large.md5}"'
    assert downloading.files()[large.md5].read_bytes() == heavy.files[large.md5]


def test_an_empty_answer_is_no_file_where_no_size_is_stated(downloading, corpus: Corpus) -> None:
    md5 = min(corpus.wanted())
    plan = lambda hit: Fault(body=b"") if hit.name == md5 and hit.nth == 1 else None  # noqa: E731
    with running(corpus=corpus, family="gelbooru", faults=plan) as booru:
        downloading.write(booru.url, site="gelbooru")
        downloading.run()
    assert set(downloading.images()) == corpus.wanted()


def test_a_whole_part_of_a_killed_run_costs_no_request(
    downloading, booru: BooruServer, corpus: Corpus
) -> None:
    md5 = min(corpus.wanted())
    downloading.folder.parts.mkdir(parents=True)
    part_of(downloading.folder, md5).path.write_bytes(corpus.files[md5])
    downloading.write(booru.url)
    downloading.run()
    assert set(downloading.files()) == corpus.wanted()
    assert not [hit for hit in booru.hits if hit.name == md5]


def other_picture(corpus: Corpus, than: Post) -> bytes:
    """Another picture of as many bytes."""
    other = next(
        f
        for m, f in corpus.files.items()
        if m != than.md5 and len(f) <= than.bytes and f[1:4] == b"PNG"
    )
    return other.ljust(than.bytes, b"\0")


def test_two_copies_that_agree_on_another_picture_are_put_aside(
    downloading, heavy: Corpus, large: Post
) -> None:
    fault = Fault(body=other_picture(heavy, large))
    digest = hashlib.md5(fault.body or b"").hexdigest()
    with running(corpus=heavy, faults=lambda h: fault if h.name == large.md5 else None) as booru:
        downloading.write(booru.url, limit=8)
        downloading.run()
        first, second = [hit for hit in booru.hits if hit.name == large.md5]
        assert "cache-control" not in first.headers
        assert second.headers["cache-control"] == "no-cache"
    reason = downloading.reason(large.id)
    assert re.search(f"bad_content: stable mismatch: .*{digest}", reason)
    [aside] = downloading.folder.quarantine.glob(f"{large.md5}.*")
    assert aside.name == f"{large.md5}.{digest}.png"
    assert hashlib.md5(aside.read_bytes()).hexdigest() == digest
    assert large.md5 not in downloading.files()


def test_a_copy_that_was_put_aside_goes_when_the_right_one_comes(
    downloading, heavy: Corpus, large: Post
) -> None:
    fault = Fault(body=other_picture(heavy, large))
    plan = lambda hit: fault if hit.name == large.md5 and hit.nth == 1 else None  # noqa: E731
    with running(corpus=heavy, faults=plan) as booru:
        downloading.write(booru.url, limit=8)
        downloading.run()
    assert large.md5 in downloading.images()
    assert list(downloading.folder.quarantine.glob(f"{large.md5}.*")) == []


def test_a_site_that_comes_back_is_waited_for(
    downloading, corpus: Corpus, told, hurried: Patience
) -> None:
    """Every file fails for a while: the run says so and pauses, and at most a few files fail."""
    down = {"since": 0.0}

    def plan(hit: Hit) -> Fault | None:
        if hit.kind != "file":
            return None
        down["since"] = down["since"] or hit.at
        return Fault(status=502) if 0.0 < hit.at - down["since"] < 0.8 else None

    with running(corpus=corpus, faults=plan) as booru:
        downloading.write(booru.url, connections=2)
        downloading.run(told, replace(hurried, outage=60, cool_down=0.3, tries=2))
        assert any("Waiting" in line and "HTTP 502" in line for line in told.lines)
        assert booru.count("file") < len(corpus.wanted()) * 2
        failed = downloading.rows("SELECT count(*) FROM job WHERE state = 'failed'")[0][0]
        assert failed <= 6
        (downloading.folder.images / "receipt.json").unlink()
        downloading.run()
        assert set(downloading.images()) == corpus.wanted()


def test_a_file_that_trickles_is_asked_for_anew(
    downloading, heavy: Corpus, large: Post, hurried: Patience
) -> None:
    """Half of it comes, and then a byte now and then: no silence, and no end either."""
    fault = Fault(cut=HALF, drip=0.05)
    plan = lambda hit: fault if hit.name == large.md5 and hit.nth == 1 else None  # noqa: E731
    with running(corpus=heavy, faults=plan) as booru:
        downloading.write(booru.url, limit=8)
        downloading.run(patience=replace(hurried, slow=20_000, slow_for=0.4))
        _, second = [hit for hit in booru.hits if hit.name == large.md5]
    assert int(second.headers["range"].removeprefix("bytes=").rstrip("-")) >= HALF
    assert large.md5 in downloading.images()


def test_files_that_are_replaced_come_in_a_second_round(downloading, corpus: Corpus) -> None:
    """Enough of them that the second round's tasks wait for each other too."""
    sound = [p for p in corpus.posts if p.flaw is None and p.rating == "g" and p.extension == "png"]
    victims = {post.md5: post for post in sound[:8]}
    renewed = set[str]()

    def replaced(hit: Hit) -> Fault | None:
        post = victims.get(hit.name)
        if post is None:
            return None
        content = corpus.files[post.md5] + b"mended"
        md5 = hashlib.md5(content).hexdigest()
        booru.files[md5] = content
        booru.posts[post.id] = replace(post, md5=md5, bytes=len(content))
        renewed.add(md5)
        return Fault(status=404)

    with running(corpus=corpus, faults=replaced) as booru:
        downloading.write(booru.url, connections=2)
        downloading.run()
    assert len(renewed) == len(victims) == 8
    assert set(downloading.files()) == corpus.wanted() - set(victims) | renewed


def test_a_challenge_before_a_file_stops_the_run(downloading, corpus: Corpus) -> None:
    challenge = Fault(status=403, headers={"cf-mitigated": "challenge"})
    plan = lambda hit: challenge if hit.kind == "file" else None  # noqa: E731
    with running(corpus=corpus, faults=plan) as booru:
        downloading.write(booru.url, connections=1)
        with pytest.raises(UrushiError, match="goes round no challenge"):
            downloading.run()
        assert booru.count("file") <= 2


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[str]:
    """The address of a server with a certificate that no one vouches for."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    server.handle_error = lambda request, address: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_host_that_cannot_prove_who_it_is_is_asked_nothing(
    downloading, impostor: str, tmp_path: Path
) -> None:
    downloading.write(impostor)
    with pytest.raises(UrushiError, match="cannot prove who it is"):
        downloading.run()
    site = Site(dialect_of("danbooru"), impostor, "urushi/test")
    promise, folder = Promise("0" * 32, 5, 10**8), DatasetFolder(tmp_path / "alone")

    async def attempt() -> None:
        async with open_session(site, Patience(), 1) as session:
            url = f"{impostor}/x.png"
            await receive(session, site, url, promise, folder, Patience(), fresh=False, begun=False)

    with pytest.raises(UrushiError, match="cannot prove who it is"):
        asyncio.run(attempt())
