"""What went wrong on the way to a site, in a few words that a person can use."""

import errno
import socket
import ssl
from collections.abc import Iterator

import requests

RESUMABLE = "What was fetched stands: run the same command again to go on."


def reason(error: BaseException) -> str:
    """A network error of requests' or aiohttp's, without the object addresses that those print."""
    causes = list(_causes(error))
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return "the connection was refused"
    if any(isinstance(cause, TimeoutError | requests.Timeout) for cause in causes):
        return "it does not answer in time"
    for cause in causes:
        if isinstance(cause, socket.gaierror | ssl.SSLError):
            return str(cause.strerror or cause)
    return "the connection broke off"


def no_room_for(error: BaseException, address: str) -> str:
    """The sentence for a machine that cannot open one more connection; "" for another `error`.

    Neither the site nor the network is to blame then, and waiting for them would not end.
    """
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
            return (
                f"No connection to {address} can be opened: {cause.strerror}. Raise the bound "
                f"(`ulimit -n 1024`). {RESUMABLE}"
            )
    return ""


def unreachable(address: str, why: str, tries: int, seconds: float) -> str:
    """The sentence for a host that is down, for a `reason`."""
    return (
        f"{address} cannot be reached: {why} (tried {tries} times in {seconds:.0f} s). "
        f"Check that it is up and that [download].host and the network are right. {RESUMABLE}"
    )


def not_itself(address: str, why: str) -> str:
    """The sentence for a host that cannot prove who it is. Nothing is asked of such a one."""
    return (
        f"{address} cannot prove who it is: {why}. Check this machine's clock and certificates, "
        f"and [download].host. {RESUMABLE}"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
