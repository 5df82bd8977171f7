"""Whether someone asked a training to stop: by SIGTERM, by Ctrl-C, or by the file STOP.

The training then ends its step, saves and leaves. A second Ctrl-C ends it at once; the last resume
point stands.
"""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

from pipeline.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """Listens while it is open. Signals reach a process's main thread only; the file reaches all.

    Args:
        file: where a person puts a file to stop the training; removed by who obeys it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._heard: signal.Signals | None = None
        self._told = False
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @property
    def asked(self) -> bool:
        """Whether to stop. Looks for the file: a microsecond."""
        return self._told or self._heard is not None or self._file.exists()

    @property
    def signalled(self) -> bool:
        """Whether a signal asked to stop."""
        return self._heard is not None

    def tell(self) -> None:
        """Asks for a stop from within: the process that waits for this one is gone."""
        self._told = True

    def end(self, said: str) -> None:
        """Ends the training, after it has saved: a signal goes on to who listened to it before.

        Raises:
            Interrupted: with `said` and how to go on.
            BaseException: what an earlier listener raises, KeyboardInterrupt for one.
        """
        heard, before = self._heard, self._before
        self.__exit__(None, None, None)
        if heard is not None and callable(handler := before[heard]):
            handler(heard, None)
        self._file.unlink(missing_ok=True)
        raise Interrupted(f"{said} Run the same command again to go on.")

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._heard is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._heard = signal.Signals(number)
