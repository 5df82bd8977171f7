"""Pictures that would take the downloader along."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from pipeline.download.content import examine
from pipeline.download.decoders import Decoders, decoders
from pipeline.download.header import EXTENSIONS, Unusable
from pipeline.errors import UrushiError

MOST_PIXELS = 10**8


@pytest.fixture
def two() -> Iterator[Decoders]:
    made = Decoders(2)
    yield made
    made.close()


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_what_comes_back_is_what_the_decoder_found(
    two: Decoders, picture: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    picture(60, 40).save(path)
    assert two.examine(path, EXTENSIONS, MOST_PIXELS) == examine(path, EXTENSIONS, MOST_PIXELS)
    before = _children()
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(Unusable, match="does not decode"):
        two.examine(path, EXTENSIONS, MOST_PIXELS)
    with pytest.raises(FileNotFoundError):
        two.examine(tmp_path / "none.png", EXTENSIONS, MOST_PIXELS)
    assert _children() == before  # One process did all that.


def test_a_script_where_one_stands_hides_no_module(
    two: Decoders, picture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random.py").write_text("raise SystemExit('not this one')\n")
    path = tmp_path / "a.png"
    picture(60, 40).save(path)
    assert two.examine(path, EXTENSIONS, MOST_PIXELS)[0].size == (60, 40)


def test_memory_beyond_what_the_size_can_need_is_refused_by_two_processes(
    picture: Any, tmp_path: Path
) -> None:
    """A progressive JPEG keeps all its coefficients: about 96 MB here, and the limit is 48."""
    large, small = tmp_path / "large.jpg", tmp_path / "small.jpg"
    Image.new("RGB", (4000, 4000), "teal").save(large, progressive=True, subsampling="4:4:4")
    picture(60, 40).save(small)
    strict = Decoders(1, a_pixel=0, spare=48 * 1024 * 1024)
    try:
        before = _children()
        strict.examine(small, EXTENSIONS, MOST_PIXELS)
        before = _children() - before
        opened = psutil.Process().num_fds()
        too_much = "more memory than a picture of its size can need"
        with pytest.raises(Unusable, match=too_much) as kept:
            strict.examine(large, EXTENSIONS, MOST_PIXELS)
        strict.examine(small, EXTENSIONS, MOST_PIXELS)
        assert not _children() & before, "one that ran out of memory is not asked again"
        assert kept.value
        assert psutil.Process().num_fds() == opened, "an error that is kept keeps a pipe open"
    finally:
        strict.close()
    assert decoders().examine(large, EXTENSIONS, MOST_PIXELS)[0].size.area == 16_000_000


@pytest.mark.parametrize(
    ("number", "end", "sentence"),
    [
        (signal.SIGSEGV, Unusable, "its decoder crashed (SIGSEGV)"),
        (signal.SIGKILL, UrushiError, "was killed, most likely for want of memory"),
    ],
)
def test_a_decoder_that_dies_takes_no_one_along(
    two: Decoders,
    picture: Any,
    tmp_path: Path,
    number: signal.Signals,
    end: type[Exception],
    sentence: str,
) -> None:
    """It crashes twice over one picture before that is the picture's fault."""
    good, hanging = tmp_path / "a.png", tmp_path / "hangs.png"
    picture(60, 40).save(good)
    os.mkfifo(hanging)  # Opening it waits for a writer, who never comes.
    before = _children()
    ends: list[Exception] = []

    def ask() -> None:
        try:
            two.examine(hanging, EXTENSIONS, MOST_PIXELS)
        except (Unusable, UrushiError) as error:
            ends.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while not (first := _children() - before):
        time.sleep(0.01)
    two.examine(good, EXTENSIONS, MOST_PIXELS)  # The second one does it meanwhile.
    second = _children() - before - first
    assert len(second) == 1
    killed = set()
    while asking.is_alive():
        with suppress(OSError):  # None is there that reads, yet.
            writer = os.open(hanging, os.O_WRONLY | os.O_NONBLOCK)
            for process in _children() - before - second - killed:
                os.kill(process, number)
                killed.add(process)
            os.close(writer)
        time.sleep(0.02)
    assert isinstance(ends[0], end) and sentence in str(ends[0])
    assert len(killed) == (2 if number == signal.SIGSEGV else 1)
    assert two.examine(good, EXTENSIONS, MOST_PIXELS)[0].size == (60, 40)


def test_none_outlives_the_one_that_asked(two: Decoders, picture: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture(60, 40).save(path)
    before = _children()
    two.examine(path, EXTENSIONS, MOST_PIXELS)
    assert len(_children() - before) == 1
    two.close()
    assert _children() == before
    two.examine(path, EXTENSIONS, MOST_PIXELS)  # Who asks later has another.
    assert len(_children() - before) == 1


def test_one_that_cannot_be_started_is_no_pictures_fault(
    two: Decoders, picture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    picture(60, 40).save(path)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(tmp_path / "none"))
        with pytest.raises(UrushiError, match=r"cannot be started: .*Nothing is lost"):
            two.examine(path, EXTENSIONS, MOST_PIXELS)
    assert two.examine(path, EXTENSIONS, MOST_PIXELS)[0].size == (60, 40)
