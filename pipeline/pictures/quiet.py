"""Decoders kept from warning: of large pictures and odd metadata, which are judged here instead."""

import threading
import warnings
from types import TracebackType


class QuietDecoders:
    """Within it Pillow's modules warn of nothing. Any number of threads may be in it at once.

    `warnings` has one list of filters for all threads: each would put back what it found, in
    whatever order they leave. So the first to enter changes it, and the last to leave restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._before = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._within += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._before.__exit__(kind, error, traceback)


quiet_decoders = QuietDecoders()
"""This process's."""
