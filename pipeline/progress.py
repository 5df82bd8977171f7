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


class _SilentBar:
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
        return _SilentBar()

    def say(self, text: str) -> None:
        pass
