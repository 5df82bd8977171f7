"""A name's addresses into a connection to the one that answers first (RFC 8305).

Networks have IPv6 set up that leads nowhere. What asks one address after another waits there for as
long as it waits for anything, at every connection.
"""

import errno
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

HEAD_START = 0.25
"""Seconds that an address has before the next one is tried beside it."""

Row = tuple[Any, ...]
"""As of socket.getaddrinfo."""


def connected(wanted: HTTPConnection) -> socket.socket:
    """What `wanted` is to send on.

    Raises:
        urllib3.exceptions.HTTPError: its host has no address, or none answers within its timeout.
    """
    seconds = wanted.timeout
    assert seconds is not None
    try:
        rows = socket.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)
        line = _first(rows, seconds)
    except socket.gaierror as error:
        raise NameResolutionError(wanted.host, wanted, error) from error
    except TimeoutError as error:
        raise ConnectTimeoutError(wanted, f"no answer in {seconds:g} s") from error
    except (OSError, UnicodeError) as error:  # Of a part of a name that is too long, say.
        raise NewConnectionError(wanted, str(error)) from error
    line.settimeout(seconds)
    for option in wanted.socket_options or ():
        line.setsockopt(*option)
    return line


def _first(rows: Iterable[Row], seconds: float) -> socket.socket:
    """The first connection of those to `rows`.

    Raises:
        OSError: of the last one that failed, if all do; TimeoutError, if others are silent.
    """
    waiting = deque(rows)
    last = OSError("it has no address")
    end = time.monotonic() + seconds
    under_way = set[socket.socket]()
    with selectors.PollSelector() as selector:  # Takes no file of its own.
        try:
            while waiting or under_way:
                if waiting:
                    try:
                        line = _begun(waiting.popleft())
                    except OSError as error:
                        last = error
                        continue
                    under_way.add(line)
                    selector.register(line, selectors.EVENT_WRITE)
                left = max(0.0, end - time.monotonic())
                found = selector.select(min(left, HEAD_START) if waiting else left)
                if not found and not left:
                    raise TimeoutError
                for key, _ in found:
                    ended = next(line for line in under_way if line.fileno() == key.fd)
                    selector.unregister(ended)
                    under_way.remove(ended)
                    number = ended.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if number == 0:
                        return ended
                    ended.close()
                    last = OSError(number, os.strerror(number))
            raise last
        finally:
            for line in under_way:
                line.close()


def _begun(row: Row) -> socket.socket:
    """On its way to an address. Raises OSError where that cannot even be tried."""
    family, kind, protocol, _, place = row
    line = socket.socket(family, kind, protocol)
    line.setblocking(False)
    number = line.connect_ex(place)
    if number not in (0, errno.EINPROGRESS):
        line.close()
        raise OSError(number, os.strerror(number))
    return line
