"""A limit to the time that a request takes as a whole: what is late is cut off.

The timeouts of requests are for each byte, and a site that sends one now and then meets them for
ever: while hands are shaken, in an answer's head, in its body.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from pipeline.download.connecting import connected


class Deadlines(HTTPAdapter):
    """The connections of a session that makes one request at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_late = False
        self._line: socket.socket | None = None
        """The connection made last, by a descriptor of its own: TLS takes the first one over."""
        super().__init__()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Cuts off what is sent and received here, if it takes longer.

        Raises:
            requests.Timeout: it did.
        """
        self._is_late = False
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception as error:
            if self._is_late:
                raise requests.Timeout(f"longer than {seconds:g} s") from error
            raise
        finally:
            timer.cancel()
        if self._is_late:  # A body without a length ends well where the connection does.
            raise requests.Timeout(f"longer than {seconds:g} s")

    def close(self) -> None:
        super().close()
        if self._line is not None:
            self._line.close()

    def init_poolmanager(self, *places: Any, **named: Any) -> None:
        super().init_poolmanager(*places, **named)
        opened = self._opened

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return opened(connected(self))

        class Secure(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return opened(connected(self))

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}

    def _opened(self, line: socket.socket) -> socket.socket:
        with self._lock:
            if self._line is not None:
                self._line.close()
            try:
                self._line = line.dup()
            except OSError:
                line.close()
                raise
        if self._is_late:
            self._cut()
        return line

    def _cut(self) -> None:
        with self._lock:
            self._is_late = True
            if self._line is not None:
                with suppress(OSError):  # The other side may have closed it.
                    self._line.shutdown(socket.SHUT_RDWR)
