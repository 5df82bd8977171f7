"""pipeline.progress on a terminal by tqdm, and as plain lines where there is no terminal.

All of it goes to standard error: standard output is for results. Once nobody reads it any more (a
closed pipe, a lost terminal) it falls silent: a build of days does not end for that.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

from pipeline.progress import Bar, Progress, SilentBar, as_line
from urushi.table import duration

LINE_SECONDS = 5.0
"""Between two plain lines of one bar."""
SHORT = 24
"""Characters that have room behind a bar on 80 columns."""
UNKNOWN = os.terminal_size((79, 24))
"""Taken for the size of a terminal that does not know its own."""


class Terminal:
    """Progress for a person: bars on a terminal, lines in a log.

    Args:
        stream: where it goes.
        clock: seconds, rising.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock

    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Bar:
        if self._stream.isatty():
            return _TqdmBar(self._stream, what, total, unit, done)
        return _LineBar(self._stream, self._clock, what, total, unit, done)

    def say(self, text: str) -> None:
        # tqdm.write keeps bars that are open below the line.
        with suppress(OSError):
            tqdm.write(text, file=self._stream)
            self._stream.flush()


class _TqdmBar(SilentBar):
    """A bar, and under it the line of what is noted where that is too long to stand behind it."""

    def __init__(self, stream: TextIO, what: str, total: int, unit: str, done: int) -> None:
        self._stream = stream
        self._bar = _drawn(stream, desc=what, total=total, initial=done, unit=f" {unit}")
        self._below: Any = None

    def advance(self, count: int = 1) -> None:
        with suppress(OSError):
            self._bar.update(count)

    def note(self, text: str) -> None:
        if self._below is None and len(text) <= SHORT:
            self._bar.set_postfix_str(text, refresh=False)
            return
        with suppress(OSError):
            if self._below is None:
                self._below = _drawn(self._stream, total=0, bar_format="  {desc}")
            # A line that the terminal broke would be left standing.
            self._below.set_description_str(text[: _columns(self._stream) - 3], refresh=False)
            self._below.refresh()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for bar in (self._below, self._bar):
            with suppress(OSError):
                if bar is not None:
                    bar.close()


def _drawn(stream: TextIO, **settings: Any) -> Any:
    """A bar of tqdm's under those that are open, gone when it is closed."""
    # One that does not know its size would be drawn on no columns and rows.
    size = {} if _size(stream) else {"ncols": UNKNOWN.columns, "nrows": UNKNOWN.lines}
    bar = tqdm(
        file=stream,
        dynamic_ncols=not size,
        leave=False,
        # Not drawn while it is made, so that the drawing can fail alone.
        delay=1e-9,
        **size,
        **settings,
    )
    with suppress(OSError):
        bar.refresh()
    return bar


def _columns(stream: TextIO) -> int:
    return (_size(stream) or UNKNOWN).columns


def _size(stream: TextIO) -> os.terminal_size | None:
    """Of the terminal, where it knows it: a serial line's, say, does not."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return None
    return size if size.columns and size.lines else None


class _LineBar(SilentBar):
    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float],
        what: str,
        total: int,
        unit: str,
        done: int,
    ) -> None:
        self._stream, self._clock = stream, clock
        self._what, self._total, self._unit = what, total, unit
        self._done, self._first, self._shown, self._note = done, done, done, ""
        self._started = self._told = clock()

    def advance(self, count: int = 1) -> None:
        self._done += count
        now = self._clock()
        if now - self._told >= LINE_SECONDS:
            self._told = now
            self._tell(now)

    def note(self, text: str) -> None:
        self._note = text

    def _tell(self, now: float) -> None:
        self._shown = self._done
        seconds = now - self._started
        rate = (self._done - self._first) / seconds if seconds > 0 else 0.0
        left = (self._total - self._done) / rate if rate > 0 else 0.0
        pace = f"{rate:.3g} {self._unit}/s" if rate > 0 else ""
        ahead = f"about {duration(left)} to go" if left >= 1 else ""
        details = pace, ahead, self._note
        line = as_line(self._what, self._done, self._total, self._unit, *details)
        with suppress(OSError):
            print(line, file=self._stream, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        now = self._clock()
        # Whoever saw it begin wants to see it end; what was quick is told by its outcome alone.
        if self._told > self._started and self._done != self._shown:
            self._tell(now)


class Counted:
    """A bar for work that tells (done, total): opened once it is known how much there is.

    with Counted(Terminal(), "merge", "tensors") as bar:
        merge(..., on_tensor=bar.told)
    """

    def __init__(self, progress: Progress, what: str, unit: str) -> None:
        self._progress, self._what, self._unit = progress, what, unit
        self._open = ExitStack()
        self._bar: Bar | None = None
        self._done = 0

    def told(self, done: int, total: int) -> None:
        if self._bar is None:
            bar = self._progress.bar(self._what, total, self._unit)
            self._bar = self._open.enter_context(bar)
        self._bar.advance(done - self._done)
        self._done = done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()
