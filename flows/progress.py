"""Progress of runs without a terminal: lines in a log, and figures for who looks from afar."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pipeline.progress import Bar, Progress, SilentBar, as_line

LINE_SECONDS = 60.0
"""Between two lines of one bar in a log that holds days."""
PUBLISH_SECONDS = 10.0
"""Between two updates of the progress that Prefect shows: each is a write to its database."""

Publish = Callable[[str, int, int, str], None]
"""(what, done, total, note)"""


class Lines:
    """Progress as lines told to `tell`."""

    def __init__(
        self, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell, self._clock = tell, clock

    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Bar:
        def line(what: str, done: int, total: int, note: str) -> None:
            self._tell(as_line(what, done, total, unit, note))

        return _Told(SilentBar(), line, LINE_SECONDS, self._clock, what, total, done)

    def say(self, text: str) -> None:
        self._tell(text)


class Published:
    """Shows what `inner` shows, and publishes every bar now and then."""

    def __init__(
        self, inner: Progress, publish: Publish, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._inner, self._publish, self._clock = inner, publish, clock

    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Bar:
        shown = self._inner.bar(what, total, unit, done)
        return _Told(shown, self._publish, PUBLISH_SECONDS, self._clock, what, total, done)

    def say(self, text: str) -> None:
        self._inner.say(text)


class _Told(SilentBar):
    """A bar that tells where it is every `every` seconds, and at its end if it ever told."""

    def __init__(
        self,
        inner: Bar,
        tell: Publish,
        every: float,
        clock: Callable[[], float],
        what: str,
        total: int,
        done: int,
    ) -> None:
        self._inner, self._tell, self._every, self._clock = inner, tell, every, clock
        self._what, self._total, self._done, self._note = what, total, done, ""
        self._started = self._told = clock()

    def advance(self, count: int = 1) -> None:
        self._done += count
        self._inner.advance(count)
        now = self._clock()
        if now - self._told >= self._every:
            self._told = now
            self._tell(self._what, self._done, self._total, self._note)

    def note(self, text: str) -> None:
        self._note = text
        self._inner.note(text)

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inner.__exit__(kind, error, trace)
        if self._told > self._started:
            self._tell(self._what, self._done, self._total, self._note)
