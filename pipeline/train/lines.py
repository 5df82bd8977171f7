"""Progress as JSON lines in a file, and such lines back into progress: across two processes.

One object a line: {"bar": …, "total": …, "unit": …, "done": …} opens a bar, {"advance": n},
{"note": text} and {"close": true} are about the open one, {"say": text} is for the person, and
{"error": class, "text": message} is why the process ended.
"""

import json
import time
from collections.abc import Callable
from typing import Any, TextIO

from pipeline import errors
from pipeline.errors import UrushiError
from pipeline.progress import Bar, Progress, SilentBar

KINDS: tuple[type[UrushiError], ...] = (
    errors.RequestError,
    errors.RecipeError,
    errors.DiskFullError,
    errors.BusyError,
    errors.Interrupted,
)
"""Errors that are the same on the other side; every other one of ours is an UrushiError there."""

PAUSE = 0.2
"""Seconds for which advances are counted up before they make a line."""


class Lines:
    """A pipeline.progress.Progress that writes lines."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock

    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Bar:
        self.write(bar=what, total=total, unit=unit, done=done)
        return _Bar(self, self._clock)

    def say(self, text: str) -> None:
        self.write(say=text)

    def error(self, error: UrushiError) -> None:
        """Why this process ends."""
        self.write(error=type(error).__name__, text=str(error))

    def write(self, **line: Any) -> None:
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()


class _Bar(SilentBar):
    def __init__(self, lines: Lines, clock: Callable[[], float]) -> None:
        self._lines, self._clock = lines, clock
        self._count, self._told = 0, clock()

    def advance(self, count: int = 1) -> None:
        self._count += count
        if self._clock() - self._told >= PAUSE:
            self._tell()

    def note(self, text: str) -> None:
        self._tell()
        self._lines.write(note=text)

    def _tell(self) -> None:
        if self._count:
            self._lines.write(advance=self._count)
        self._count, self._told = 0, self._clock()

    def __exit__(self, *_: object) -> None:
        self._tell()
        self._lines.write(close=True)


class Replay:
    """Lines back into `progress`, one after the other."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar: Bar | None = None
        self.error: UrushiError | None = None
        """Why the process said that it ended."""

    def take(self, text: str) -> None:
        """Acts on one line; what is no line of `Lines` is passed over."""
        try:
            line = json.loads(text)
        except ValueError:
            return
        if "bar" in line:
            self.close()
            self._bar = self._progress.bar(line["bar"], line["total"], line["unit"], line["done"])
            self._bar.__enter__()
        elif "say" in line:
            self._progress.say(line["say"])
        elif "error" in line:
            kinds = {kind.__name__: kind for kind in KINDS}
            self.error = kinds.get(line["error"], UrushiError)(line["text"])
        elif self._bar is not None:
            if "advance" in line:
                self._bar.advance(line["advance"])
            elif "note" in line:
                self._bar.note(line["note"])
            elif "close" in line:
                self.close()

    def close(self) -> None:
        """Closes the bar that is open."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar = None
