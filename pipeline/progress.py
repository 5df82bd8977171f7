"""The one way in which the core says how far it is: a protocol that the front door fills in."""

from types import TracebackType
from typing import Protocol, Self


class Bar(Protocol):
    """A count that rises to its total. A context manager, so that it is closed on errors."""

    def advance(self, count: int = 1) -> None: ...

    def note(self, text: str) -> None:
        """A short text beside the bar: the running loss, say."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Progress(Protocol):
    """Where bars and the few lines that a person should see go."""

    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Bar:
        """A bar named `what` that counts `unit`s to `total`, `done` of them finished earlier."""

    def say(self, text: str) -> None:
        """One line for the person who watches."""


def as_line(what: str, done: int, total: int, unit: str = "", *details: str) -> str:
    """Where a bar is, such as: train: 30/400 steps (8%), loss 0.12. Empty details are left out."""
    count = f"{what}: {done}/{total}{' ' if unit else ''}{unit}"
    share = f" ({done / total:.0%})" if total else ""
    return ", ".join([count + share, *filter(None, details)])


class SilentBar:
    """A bar that shows nothing. Others are made of it, which say only what they do more."""

    def advance(self, count: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


class Silent:
    """Progress that shows nothing: for use as a library."""

    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Bar:
        return SilentBar()

    def say(self, text: str) -> None:
        pass
