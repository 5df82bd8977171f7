"""A small booru on loopback, and the stage run against it as the front door runs it."""

import hashlib
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from demo.booru import BooruServer, running
from demo.booru_faults import FaultPlan, no_faults
from demo.corpus import Corpus, generate
from pipeline.artefacts.job import Outcome, load_job
from pipeline.artefacts.records import Failure, ImageRecord, read_records
from pipeline.artefacts.workspace import DatasetFolder, Workspace
from pipeline.download.patience import Patience
from pipeline.download.posts import Post
from pipeline.download.stage import run
from pipeline.progress import Silent
from pipeline.size import Size

HURRIED = Patience(
    tries=4, first_wait=0.01, throttled_wait=0.1, connect=2, silence=0.6, cool_down=0.05, outage=0
)
"""The default's shape, over in tenths of a second; it does not wait for a site that went away."""


class Told(Silent):
    """Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@dataclass
class Downloading:
    """A dataset called "small" in a workspace of its own."""

    recipe: Path
    workspace: Path

    @property
    def folder(self) -> DatasetFolder:
        return Workspace(self.workspace).dataset("small")

    def write(self, host: str, **settings: Any) -> None:
        """A [download] recipe for the server at `host`, quick unless `settings` say otherwise.

        `exclude` is the table of that name.
        """
        exclude = settings.pop("exclude", {})
        known: dict[str, Any] = {
            "site": "danbooru",
            "tags": "maki-e_box",
            "requests_per_second": 1000,
            "connections": 4,
        }
        known |= {"host": host} | settings
        lines = [f"{key} = {_toml(value)}" for key, value in known.items() if value is not None]
        barred = [f"{key} = {_toml(value)}" for key, value in exclude.items()]
        text = ["[download]", *lines, *(["[exclude]", *barred] if barred else [])]
        self.recipe.write_text('name = "small"\n' + "\n".join(text) + "\n")

    def write_folder(self, path: Path, more: str = "") -> None:
        self.recipe.write_text(f'name = "small"\n[folder]\npath = {_toml(str(path))}\n{more}')

    def run(
        self, progress: Silent | None = None, patience: Patience = HURRIED, **asked: bool
    ) -> Outcome:
        """`asked`: refresh or retry."""
        job = load_job(self.recipe, self.workspace)
        return run(job, progress or Silent(), patience, **asked)

    def images(self) -> dict[str, ImageRecord]:
        rows = read_records(self.folder.images / "images.jsonl", ImageRecord)
        assert [row.md5 for row in rows] == sorted({row.md5 for row in rows})
        return {row.md5: row for row in rows}

    def failures(self) -> list[Failure]:
        return read_records(self.folder.images / "failures.jsonl", Failure)

    def reason(self, post_id: int) -> str:
        """Why the file of a post is not here."""
        found = [f.reason for f in self.failures() if f.reason.startswith(f"danbooru:{post_id} ")]
        assert len(found) == 1
        return found[0]

    def files(self) -> dict[str, Path]:
        """Everything under originals/, by the md5 of its bytes; each must bear that name."""
        found = {}
        for path in self.folder.originals.rglob("*"):
            if path.is_file():
                md5 = hashlib.md5(path.read_bytes()).hexdigest()
                assert path == self.folder.original(md5, path.suffix[1:])
                found[md5] = path
        return found

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What posts.sqlite answers."""
        with closing(sqlite3.connect(self.folder.posts)) as db:
            return db.execute(query).fetchall()


class Pouring:
    """A server that answers each connection with pieces, as long as the other side takes them."""

    def __init__(self, pieces: Callable[[], Iterator[bytes]], pause: float = 0.0) -> None:
        self.sent = self.connections = 0
        self._pieces = pieces
        self._pause = pause
        self._stop = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._stop.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                line, _ = self._socket.accept()
                self.connections += 1
                self._threads.append(threading.Thread(target=self._pour, args=(line,)))
                self._threads[-1].start()

    def _pour(self, line: socket.socket) -> None:
        with line, suppress(OSError):
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.recv(65536)
            for piece in self._pieces():
                if self._stop.wait(self._pause):
                    return
                line.sendall(piece)
                self.sent += len(piece)


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.fixture(autouse=True)
def turns_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for the turns of another program on this machine, nor uses its keys."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(runtime))


@pytest.fixture
def hurried() -> Patience:
    return HURRIED


@pytest.fixture
def downloading(tmp_path: Path) -> Downloading:
    return Downloading(tmp_path / "small.toml", tmp_path / "workspace")


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return generate(seed=5, count=48)


@pytest.fixture
def serving(corpus: Corpus) -> Iterator[Callable[..., BooruServer]]:
    """Starts boorus over the corpus, with a plan of faults if one is given; stopped at the end."""
    stack = []

    def start(faults: FaultPlan = no_faults) -> BooruServer:
        context = running(corpus=corpus, faults=faults)
        stack.append(context)
        return context.__enter__()

    yield start
    for context in reversed(stack):
        context.__exit__(None, None, None)


@pytest.fixture
def booru(serving: Callable[..., BooruServer]) -> BooruServer:
    return serving()


@pytest.fixture
def make_post() -> Callable[..., Post]:
    """make_post(7, score=3) -> a general post whose md5 is its number."""

    def make(number: int, **said: Any) -> Post:
        known: dict[str, Any] = {
            "site": "danbooru",
            "id": number,
            "md5": f"{number:032x}",
            "extension": "png",
            "bytes": 1000,
            "size": Size(64, 48),
            "rating": "general",
            "score": 0,
            "status": "active",
            "file_url": f"/{number}.png",
            "source_url": "",
            "parent_id": None,
            "created_at": "2026-01-01T00:00:00+00:00",
            "tags": {"general": ("cat",), "artist": (f"artist_{number}",)},
            "raw": "{}",
        }
        return Post(**known | said)

    return make


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def pouring() -> Iterator[Callable[..., Pouring]]:
    """Starts servers that pour pieces, so many seconds apart; stopped at the end."""
    servers = []

    def start(pieces: Callable[[], Iterator[bytes]], pause: float = 0.0) -> Pouring:
        servers.append(Pouring(pieces, pause))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
