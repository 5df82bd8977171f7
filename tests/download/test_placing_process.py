"""Small files placed by a process of its own: as here, whatever becomes of that process."""

import asyncio
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download import placing_process as module
from pipeline.download.header import Unusable
from pipeline.download.landing import Landing
from pipeline.download.parts import WORTH_RESUMING, part_of
from pipeline.download.placing import Arrival, Landed, OtherBytes, Placed, Placing
from pipeline.download.placing_process import PlacingProcess
from pipeline.download.quarantine import NotPromised, Promise
from pipeline.download.worker import Worker
from pipeline.errors import RequestError

pytestmark = pytest.mark.skipif(not module.CAN, reason="the system has no such processes")
SOON = 60.0
"""Seconds within which what must happen has happened, on a machine that stalls as well."""
ROOT = Path(__file__).parents[2]


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (9, 5), random.Random(number).randbytes(135)).save(buffer, "PNG")
    return buffer.getvalue()


def md5_of(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def came(folder: DatasetFolder, content: bytes, md5: str = "", pieces: int = 1) -> Arrival:
    part = part_of(folder, md5 or md5_of(content))
    part.restart(None, None)
    step = -(-len(content) // pieces)
    for start in range(0, len(content), step):
        part.write(content[start : start + step])
    return part, Promise(part.path.stem, len(content), 10**6)


def good(folder: DatasetFolder, numbers: range) -> list[Arrival]:
    return [came(folder, png(number)) for number in numbers]


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    return DatasetFolder(tmp_path / "dataset")


@pytest.fixture
def placer(folder: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlacingProcess]:
    """One whose process has begun."""
    monkeypatch.setattr(module, "WORTH_IT", 1)
    found = PlacingProcess(folder)
    first = [came(folder, png(901))]
    until(lambda: bool(found.place(first)))
    yield found
    found.close()


def child_of(placer: PlacingProcess) -> "subprocess.Popen[bytes]":
    assert placer._worker is not None
    return placer._worker._process


def tree(folder: DatasetFolder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder.root)): path.read_bytes()
        for path in sorted(folder.root.rglob("*"))
        if path.is_file()
    }


def described(ends: dict[str, Placed]) -> dict[str, tuple[type, str]]:
    return {md5: (type(end), str(end)) for md5, end in ends.items()}


def test_each_ends_as_it_would_here(
    placer: PlacingProcess, folder: DatasetFolder, tmp_path: Path
) -> None:
    here = DatasetFolder(tmp_path / "here")

    def arrivals(to: DatasetFolder) -> list[Arrival]:
        text, largest = b"no picture", png(3).ljust(WORTH_RESUMING - 1, b"\0")
        return [
            *good(to, range(40)),
            came(to, png(100), pieces=3),
            came(to, largest),
            came(to, png(101), "0" * 32),
            came(to, text),
        ]

    assert set(Placing(here).place([came(here, png(901))])) == {md5_of(png(901))}
    expected = Placing(here).place(arrivals(here))
    kinds = [type(end) for end in expected.values()]
    assert kinds == [Landed] * 42 + [OtherBytes, Unusable]
    there = arrivals(folder)
    ends = placer.place(there)
    assert described(ends) == described(expected)
    assert tree(folder) == tree(here)
    assert len(tree(here)) == 43
    other = there[-2][0]
    assert other.in_memory == png(101)  # To be looked at further.


def test_what_the_disk_refuses_is_told_of_each(
    placer: PlacingProcess, folder: DatasetFolder
) -> None:
    folder.parts.rmdir()
    folder.parts.write_bytes(b"in the way")
    ends = placer.place(good(folder, range(5)))
    assert [type(end) for end in ends.values()] == [RequestError] * 5
    assert all("where its folder should be" in str(end) for end in ends.values())
    assert folder.parts.read_bytes() == b"in the way"


def test_what_named_an_earlier_copy_goes(placer: PlacingProcess, folder: DatasetFolder) -> None:
    """A part of which the server no longer has the rest: it comes anew, into memory."""
    part, promise = came(folder, png(1))
    part.path.write_bytes(b"begun")
    part.path.with_suffix(".etag").write_text('"a"')
    part.resume()
    part.restart(None, None)
    part.write(png(1))
    assert isinstance(placer.place([(part, promise)])[promise.md5], Landed)
    assert list(folder.parts.iterdir()) == []


def test_a_few_files_begin_no_process(folder: DatasetFolder) -> None:
    placer = PlacingProcess(folder)
    assert placer.place(good(folder, range(module.WORTH_IT - 1))) == {}
    assert placer._worker is None
    assert tree(folder) == {}


def test_more_than_there_is_memory_for_is_placed_elsewhere(
    placer: PlacingProcess, folder: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrivals = good(folder, range(10))
    monkeypatch.setattr(module, "MEMORY", sum(part.length for part, _ in arrivals) - 1)
    assert placer.place(arrivals) == {}
    assert len(placer.place(arrivals[1:])) == 9


def test_bytes_of_one_batch_do_not_reach_the_next(
    placer: PlacingProcess, folder: DatasetFolder
) -> None:
    """The same memory is used again and again."""
    for numbers in (range(30), range(30, 35), range(35, 75)):
        placer.place(good(folder, numbers))
    assert {path.stem for path in folder.originals.rglob("*.png")} == {
        md5_of(png(number)) for number in (*range(75), 901)
    }
    assert all(md5_of(path.read_bytes()) == path.stem for path in folder.originals.rglob("*.png"))


@pytest.mark.parametrize("end", ["killed", "killed as it works", "silent"])
def test_a_process_that_is_lost_is_done_without(
    placer: PlacingProcess, folder: DatasetFolder, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    child = child_of(placer)
    child.send_signal(signal.SIGKILL if end == "killed" else signal.SIGSTOP)
    if end == "killed":
        child.wait()
    if end == "killed as it works":
        asked = placer._worker.pipe.poll  # type: ignore[union-attr]

        def killed(patience: float) -> bool:
            child.kill()
            return asked(patience)

        monkeypatch.setattr(placer._worker.pipe, "poll", killed)  # type: ignore[union-attr]
    if end == "silent":
        monkeypatch.setattr(module, "PATIENCE", 0.01)
    arrivals = good(folder, range(5))
    assert placer.place(arrivals) == {}
    assert child.returncode == -signal.SIGKILL
    assert placer.place(arrivals) == {}
    assert child_of(placer) is child  # No other was begun.
    assert all(isinstance(end, Landed) for end in Placing(folder).place(arrivals).values())


def test_what_a_lost_process_had_placed_is_placed_again(
    placer: PlacingProcess, folder: DatasetFolder
) -> None:
    """Killed in the middle of a batch: what it was given is still here, all of it."""
    arrivals = good(folder, range(40))
    begun, _ = arrivals[20]
    assert len(placer.place(arrivals[:20])) == 20
    begun.path.write_bytes(png(20)[:50])
    ends = Placing(folder).place(arrivals)
    assert [type(end) for end in ends.values()] == [Landed] * 40
    assert len(list(folder.originals.rglob("*.png"))) == 41
    assert all(md5_of(path.read_bytes()) == path.stem for path in folder.originals.rglob("*.png"))
    assert list(folder.parts.iterdir()) == []


def test_threads_do_not_write_over_each_others_bytes(
    placer: PlacingProcess, folder: DatasetFolder
) -> None:
    def all_landed(first: int) -> bool:
        ends = placer.place(good(folder, range(first, first + 40)))
        return len(ends) == 40 and all(isinstance(end, Landed) for end in ends.values())

    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(all_landed, range(1000, 2600, 40)))


def no_process(*arguments: object, **named: object) -> None:
    raise BlockingIOError("no more processes")


def no_memory(name: str) -> int:
    """As of a Python that was built for an older system, but for the words."""
    raise AttributeError("module 'os' has no attribute 'memfd_create'")


@pytest.mark.parametrize(
    ("where", "failing"),
    [("pipeline.download.placing_process.Worker", no_process), ("os.memfd_create", no_memory)],
)
def test_a_process_that_cannot_be_had_is_asked_for_once(
    folder: DatasetFolder, monkeypatch: pytest.MonkeyPatch, where: str, failing
) -> None:
    asked = []

    def counted(*arguments: object, **named: object) -> None:
        asked.append(arguments)
        failing(*arguments, **named)

    monkeypatch.setattr(where, counted)
    placer = PlacingProcess(folder)
    for _ in range(3):
        assert placer.place(good(folder, range(module.WORTH_IT))) == {}
    assert len(asked) == 1


def test_one_that_begins_as_the_download_ends_is_ended(
    folder: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop closes it while a thread starts it."""
    begin = Worker.__init__

    def closed_meanwhile(self: Worker, *arguments, **named) -> None:
        placer.close()
        begin(self, *arguments, **named)

    monkeypatch.setattr(Worker, "__init__", closed_meanwhile)
    placer = PlacingProcess(folder)
    assert placer.place(good(folder, range(module.WORTH_IT))) == {}
    assert child_of(placer).returncode == -signal.SIGKILL


def test_nothing_is_asked_of_one_that_ended_meanwhile(
    placer: PlacingProcess, folder: DatasetFolder
) -> None:
    """A thread that waited for its turn while the loop closed it."""
    asked = len(list(folder.originals.rglob("*.png")))
    with ThreadPoolExecutor(1) as threads:
        with placer._one_at_a_time:
            waiting = threads.submit(placer.place, good(folder, range(5)))
            placer.close()
        assert waiting.result(SOON) == {}
    assert len(list(folder.originals.rglob("*.png"))) == asked


def test_a_landing_uses_it_and_ends_it(
    folder: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others of the same batch are placed here, and copies of another md5 put aside."""
    monkeypatch.setattr(module, "WORTH_IT", 1)
    placed: list[int] = []
    place = PlacingProcess.place

    def counted(self: PlacingProcess, arrivals: list[Arrival]) -> dict[str, Placed]:
        ends = place(self, arrivals)
        placed.append(len(ends))
        return ends

    monkeypatch.setattr(PlacingProcess, "place", counted)
    large = png(904).ljust(WORTH_RESUMING, b"\0")

    async def all_of_them() -> tuple[list[object], int]:
        landing = Landing(folder)
        before, end = 0, time.monotonic() + SOON
        while not any(placed):
            assert time.monotonic() < end
            three = good(folder, range(1000 + before, 1003 + before))
            await asyncio.gather(*(landing.land(*one) for one in three))
            before += 3
        placed.clear()
        arrivals = [came(folder, large), came(folder, png(902), "0" * 32), came(folder, png(903))]
        ends = await asyncio.gather(*(landing.land(*a) for a in arrivals), return_exceptions=True)
        child = child_of(landing._process)
        landing.close()
        assert child.returncode == -signal.SIGKILL
        return list(ends), before

    ends, before = asyncio.run(all_of_them())
    assert [type(end) for end in ends] == [Landed, NotPromised, Landed]
    assert placed == [2]
    assert len(list(folder.originals.rglob("*.png"))) == before + 2
    assert [path.read_bytes() for path in folder.quarantine.iterdir()] == [png(902)]
    assert list(folder.parts.iterdir()) == []


PARENT = """
import sys, time
from pathlib import Path
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download import placing_process
found = placing_process.PlacingProcess(DatasetFolder(Path(sys.argv[1])))
found._has_begun()
found._worker.pipe.recv()
print(found._worker._process.pid, flush=True)
time.sleep(600)
"""


def test_it_goes_with_its_parent_even_if_it_does_nothing(folder: DatasetFolder) -> None:
    """SIGKILL of a download leaves no one that might still write: here one that is stopped, and
    reads of no pipe that its other end is closed."""
    command = [sys.executable, "-c", PARENT, str(folder.root)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, signal.SIGSTOP)
        parent.kill()
    try:
        until(lambda: is_gone(child))
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
