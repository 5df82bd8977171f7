"""A request to a site's API into its answer, of which no more is read than an answer may be long.

requests would read and unpack all that comes: gigabytes, or a megabyte that unpacks to them.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import requests
from urllib3.exceptions import HTTPError

from pipeline.download.credentials import Signed
from pipeline.download.deadlines import Deadlines
from pipeline.download.patience import Patience
from pipeline.download.sites import Site

MOST_BYTES = 16 * 1024 * 1024
"""Of an answer, as it comes and unpacked. The longest there are, 320 posts of e621 and the summary
of all of a moebooru's tags, have one to four million; a bound is for memory, and what JSON unfolds
to takes up to thirty times as much."""
CHUNK = 64 * 1024
GZIP = 16 + zlib.MAX_WBITS
TOO_LONG = f"it is longer than {MOST_BYTES // 1024**2} MiB, several times as long as any page"


@dataclass(frozen=True, repr=False)
class Answer:
    """What a site answered. Shows itself to no one: the key may be quoted in it."""

    status: int
    reason: str
    """The status in words."""
    headers: Mapping[str, str]
    """By their names in any case."""
    content: bytes
    """Unpacked."""
    unread: str = ""
    """What kept the body from being read, if something did; `content` is empty then."""


class Client:
    """Asks one site's API, one question at a time."""

    def __init__(self, site: Site, patience: Patience) -> None:
        self._patience = patience
        self._deadlines = Deadlines()
        self._session = _Direct()
        self._session.mount("http://", self._deadlines)
        self._session.mount("https://", self._deadlines)
        # No .netrc and no proxy of the environment: nothing is sent that the recipe does not say.
        self._session.trust_env = False
        self._session.auth = Signed(site.credentials)
        self._session.headers["User-Agent"] = site.user_agent
        self._session.headers["Accept"] = "application/json, text/xml"
        self._session.headers["Accept-Encoding"] = "gzip"

    def close(self) -> None:
        self._session.close()

    def get(self, url: str, parameters: Mapping[str, str]) -> Answer:
        """The answer; of one that leads elsewhere, that it does.

        Raises:
            requests.RequestException: none came, not all of it, or not in time.
        """
        patience = self._patience
        with self._deadlines.within(patience.answer):
            response = self._session.get(
                url,
                params=dict(parameters),
                timeout=(patience.connect, patience.silence),
                allow_redirects=False,
                stream=True,
            )
        with response, self._deadlines.within(patience.page):
            try:
                content, unread = _body(response), ""
            except _Unreadable as error:
                content, unread = b"", str(error)
            except HTTPError as error:
                raise requests.ConnectionError("the body broke off") from error
        return Answer(response.status_code, response.reason, response.headers, content, unread)


class _Direct(requests.Session):
    """Follows no redirect, and does not read the body of one to the end for that."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class _Unreadable(Exception):
    """Too much, or packed in a way that it was not to be."""


def _body(response: requests.Response) -> bytes:
    """The body, unpacked. Raises _Unreadable and urllib3's errors."""
    packed = response.headers.get("Content-Encoding", "").strip().lower()
    if packed not in ("", "identity", "gzip"):
        raise _Unreadable(f"it is packed as {packed!r}, which was not asked for")
    unpacking = zlib.decompressobj(GZIP) if packed == "gzip" else None
    pieces, came, length = [], 0, 0
    # Read so, not as a stream: that takes the lines between a body's chunks at any length.
    while piece := response.raw.read(CHUNK, decode_content=False):
        came += len(piece)
        if unpacking is not None:
            try:
                piece = unpacking.decompress(piece, MOST_BYTES + 1 - length)
            except zlib.error:
                raise _Unreadable("it is not packed as it says") from None
        pieces.append(piece)
        length += len(piece)
        if max(came, length) > MOST_BYTES:
            raise _Unreadable(TOO_LONG)
    if unpacking is not None and came and not unpacking.eof:
        raise _Unreadable("it is not packed as it says")
    return b"".join(pieces)
