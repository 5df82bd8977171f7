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
from pathlib import Path

import pytest
from PIL import Image

from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download import beside as module
from pipeline.download.beside import Beside
from pipeline.download.header import Unusable
from pipeline.download.landing import Landing
from pipeline.download.parts import WORTH_RESUMING, part_of
from pipeline.download.placing import Arrival, End, Landed, OtherBytes, Placing
from pipeline.download.quarantine import NotPromised, Promise
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
def beside(folder: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Beside]:
    """One whose process has begun."""
    monkeypatch.setattr(module, "WORTH_IT", 1)
    found = Beside(folder)
    first = [came(folder, png(901))]
    until(lambda: bool(found.place(first)))
    yield found
    found.close()


def process_of(beside: Beside) -> "subprocess.Popen[bytes]":
    assert beside._worker is not None
    return beside._worker._process


def tree(folder: DatasetFolder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder.root)): path.read_bytes()
        for path in sorted(folder.root.rglob("*"))
        if path.is_file()
    }


def described(ends: dict[str, End]) -> dict[str, tuple[type, str]]:
    return {md5: (type(end), str(end)) for md5, end in ends.items()}


def test_each_ends_as_it_would_here(beside: Beside, folder: DatasetFolder, tmp_path: Path) -> None:
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
    ends = beside.place(there)
    assert described(ends) == described(expected)
    assert tree(folder) == tree(here)
    assert len(tree(here)) == 43
    other = there[-2][0]
    assert other.in_memory == png(101)  # To be looked at further.


def test_what_the_disk_refuses_is_told_of_each(beside: Beside, folder: DatasetFolder) -> None:
    folder.parts.rmdir()
    folder.parts.write_bytes(b"in the way")
    ends = beside.place(good(folder, range(5)))
    assert [type(end) for end in ends.values()] == [RequestError] * 5
    assert all("where its folder should be" in str(end) for end in ends.values())
    assert folder.parts.read_bytes() == b"in the way"


def test_what_named_an_earlier_copy_goes(beside: Beside, folder: DatasetFolder) -> None:
    """A part of which the server no longer has the rest: it comes anew, into memory."""
    part, promise = came(folder, png(1))
    part.path.write_bytes(b"begun")
    part.path.with_suffix(".etag").write_text('"a"')
    part.resume()
    part.restart(None, None)
    part.write(png(1))
    assert isinstance(beside.place([(part, promise)])[promise.md5], Landed)
    assert list(folder.parts.iterdir()) == []


def test_a_few_files_begin_no_process(folder: DatasetFolder) -> None:
    beside = Beside(folder)
    assert beside.place(good(folder, range(module.WORTH_IT - 1))) == {}
    assert beside._worker is None
    assert tree(folder) == {}


def test_more_than_there_is_memory_for_is_placed_elsewhere(
    beside: Beside, folder: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrivals = good(folder, range(10))
    monkeypatch.setattr(module, "MEMORY", sum(part.length for part, _ in arrivals) - 1)
    assert beside.place(arrivals) == {}
    assert len(beside.place(arrivals[1:])) == 9


def test_bytes_of_one_batch_do_not_reach_the_next(beside: Beside, folder: DatasetFolder) -> None:
    """The same memory is used again and again."""
    for numbers in (range(30), range(30, 35), range(35, 75)):
        beside.place(good(folder, numbers))
    assert {path.stem for path in folder.originals.rglob("*.png")} == {
        md5_of(png(number)) for number in (*range(75), 901)
    }
    assert all(md5_of(path.read_bytes()) == path.stem for path in folder.originals.rglob("*.png"))


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_process_that_is_lost_is_done_without(
    beside: Beside, folder: DatasetFolder, when: str
) -> None:
    process = process_of(beside)
    os.kill(process.pid, signal.SIGKILL if when == "before" else signal.SIGSTOP)
    if when == "before":
        process.wait()
        assert beside.place(good(folder, range(5))) == {}
    else:

        async def asked() -> dict[str, End]:
            waiting = asyncio.create_task(asyncio.to_thread(beside.place, good(folder, range(5))))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            process.kill()
            return await waiting

        assert asyncio.run(asked()) == {}
    arrivals = good(folder, range(5))
    assert beside.place(arrivals) == {}
    assert process_of(beside) is process, "another one was begun"
    assert all(isinstance(end, Landed) for end in Placing(folder).place(arrivals).values())


def test_a_process_that_cannot_be_had_is_asked_for_once(
    folder: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def none_left(*arguments: object, **named: object) -> None:
        asked.append(arguments)
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(module, "Worker", none_left)
    beside = Beside(folder)
    for _ in range(3):
        assert beside.place(good(folder, range(module.WORTH_IT))) == {}
    assert len(asked) == 1


def test_a_landing_uses_it_and_ends_it(
    folder: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others of the same batch are placed here, and copies of another md5 put aside."""
    monkeypatch.setattr(module, "WORTH_IT", 1)
    placed: list[int] = []
    place = Beside.place

    def counted(self: Beside, arrivals: list[Arrival]) -> dict[str, End]:
        ends = place(self, arrivals)
        placed.append(len(ends))
        return ends

    monkeypatch.setattr(Beside, "place", counted)
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
        process = process_of(landing._beside)
        landing.close()
        assert process.returncode == -signal.SIGKILL
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
from pipeline.download import beside
found = beside.Beside(DatasetFolder(Path(sys.argv[1])))
found._begin()
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
    until(lambda: is_gone(child))


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
