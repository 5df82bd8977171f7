import fcntl
import io
import os
import pty
import re
import struct
import termios
from collections.abc import Iterator
from contextlib import suppress

import pytest

from urushi.progress import LINE_SECONDS, Terminal
from urushi.table import duration, size, table


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_are_few_plain_lines() -> None:
    stream, clock = io.StringIO(), Clock()
    with Terminal(stream, clock).bar("download", 1000, "pictures", done=100) as bar:
        for _ in range(9):
            clock.now += LINE_SECONDS / 2
            bar.advance(100)
        bar.note("slow site")
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [f"{n}/1000" for n in (300, 500, 700, 900, 1000)]
    # 200 pictures in 5 seconds: the 100 that were there before do not count.
    assert lines[0] == "download: 300/1000 pictures (30%), 40 pictures/s, about 17.5 s to go"
    assert lines[-1] == "download: 1000/1000 pictures (100%), 40 pictures/s, slow site"
    assert "\r" not in stream.getvalue()


def test_the_last_line_is_not_told_twice() -> None:
    stream, clock = io.StringIO(), Clock()
    with Terminal(stream, clock).bar("train", 6, "steps") as bar:
        for _ in range(6):
            clock.now += LINE_SECONDS
            bar.advance()
    assert len(stream.getvalue().splitlines()) == 6


def test_what_is_quick_is_silent() -> None:
    stream, clock = io.StringIO(), Clock()
    with Terminal(stream, clock).bar("caption", 3, "pictures") as bar:
        bar.advance(3)
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_and_lines_above_it() -> None:
    stream = Screen()
    progress = Terminal(stream)
    with progress.bar("train", 10, "steps", done=4) as bar:
        bar.note("loss 0.5")
        bar.advance(6)
        progress.say("hello")
    shown = stream.getvalue()
    assert "train" in shown and "4/10" in shown and "hello\n" in shown


def screens(shown: str) -> Iterator[dict[int, str]]:
    """Line by line what stands on a terminal after each piece of what was sent to it."""
    lines: dict[int, str] = {}
    row = column = 0
    for piece in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+", shown):
        if piece == "\r":
            column = 0
        elif piece in ("\n", "\x1b[A"):
            row += 1 if piece == "\n" else -1
        else:
            before = lines.get(row, "").ljust(column)
            lines[row] = before[:column] + piece + before[column + len(piece) :]
            column += len(piece)
        yield {number: line.strip() for number, line in lines.items()}


LONG = "loss 0.4222, mean 0.6375, LR 0.008, 9.56 pictures/s, 0.7 GiB"


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (24, 40), (0, 0)])
def test_what_is_noted_is_read_whole_on_a_narrow_terminal(rows: int, columns: int) -> None:
    """A real one: 80 columns have no room for it behind the bar; one of no size is taken for 80."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with open(theirs, "w") as stream:
        progress = Terminal(stream)
        with progress.bar("train 1", 40, "step") as bar:
            bar.advance(8)
            bar.note(LONG)
            progress.say("between")
            bar.note("short")
            bar.advance(8)
    sent = b""
    with suppress(OSError):  # How a terminal without a writer ends.
        while part := os.read(ours, 100_000):
            sent += part
    os.close(ours)
    shown = sent.decode()
    wide = columns or 80
    frames = [screen for screen in screens(shown) if LONG[: wide - 3] in screen.values()]
    assert frames and all(len(line) < wide for screen in frames for line in screen.values())
    assert any("8/40" in line for screen in frames for line in screen.values())
    assert [line for line in [*screens(shown)][-1].values() if line] == ["between"]


class Gone(Screen):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


class GonePipe(Gone):
    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("stream", [Gone(), GonePipe()])
def test_a_build_outlives_whoever_watched_it(stream: Gone) -> None:
    clock = Clock()
    progress = Terminal(stream, clock)
    progress.say("hello")
    with progress.bar("train", 10, "steps") as bar:
        for _ in range(10):
            clock.now += LINE_SECONDS
            bar.note("loss 0.5")
            bar.advance()


def test_tables_sizes_and_durations() -> None:
    rows = [("1", "cats", "~9"), ("10", "a", "≤120")]
    assert table(("n", "what", "steps"), rows, indent="").splitlines() == [
        " n  what  steps",
        " 1  cats     ~9",
        "10  a      ≤120",
    ]
    assert [size(n) for n in (0, 999, 1000, 8_400_000, 2_130_000_000, 5e12)] == [
        *("0 B", "999 B", "1 kB", "8.4 MB", "2.13 GB", "5 TB"),
    ]
    assert [duration(s) for s in (0, 99.94, 600, 7200, 50_000, 864_000)] == [
        *("0.0 s", "99.9 s", "10 min", "2.0 h", "13.9 h", "10.0 days"),
    ]
