"""One file over HTTP into a part: streamed, hashed on the way, and judged by its md5.

A part outlives a stop or a kill, and the next attempt asks for the rest of it. The order in which
things reach the disk: the part, its fsync, the new name, the folder's fsync (placing.py); whoever
called notes it in the store after that.
"""

import asyncio
import hashlib
import re
from pathlib import Path
from time import monotonic
from urllib.parse import urljoin

import aiohttp

from pipeline.artefacts.files import translated
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.addresses import OutsideOnly
from pipeline.download.header import EXTENSIONS, Unusable, glance
from pipeline.download.md5 import new_md5
from pipeline.download.pages import NOT_THERE, THROTTLED
from pipeline.download.parts import WORTH_RESUMING, Part, part_of
from pipeline.download.patience import Patience
from pipeline.download.placing import Landed
from pipeline.download.quarantine import NotPromised, Promise, put_aside
from pipeline.download.sites import Site
from pipeline.download.trouble import no_room_for, not_itself, reason
from pipeline.errors import UrushiError

CHUNK = 256 * 1024
READ_BUFFER = 1024 * 1024
MOST_BYTES = 512 * 1024 * 1024
"""Read of a file whose size the site does not state."""
MOST_REDIRECTS = 3
RANGES_REFUSED = 416
NO_CONNECTION = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
NO_TRAINING = ("noai", "noimageai")
"""Words of X-Robots-Tag with which a host says that its pictures are not for training."""


class Interrupted(Exception):
    """The network or the server failed; the file may come at another try."""

    def __init__(self, why: str, *, unreachable: bool = False) -> None:
        super().__init__(why)
        self.unreachable = unreachable
        """Whether not even a connection was made: the site's fault, not the file's."""


class TooQuick(Exception):
    """The host wants us to wait; its Retry-After, if it sent one."""

    def __init__(self, status: int, retry_after: str | None) -> None:
        super().__init__(f"HTTP {status}")
        self.retry_after = retry_after


class NotShown(Exception):
    """The host has no such file, or not for us."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class NotAllowed(Exception):
    """The file may not be fetched, or not be used."""


def open_session(site: Site, patience: Patience, connections: int) -> aiohttp.ClientSession:
    """A session for files, which sends no key. Needs a running loop; to be closed."""
    return aiohttp.ClientSession(
        # A picture is compressed already, and its md5 is that of the bytes as they lie there.
        headers={"User-Agent": site.user_agent, "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=patience.connect, sock_read=patience.silence
        ),
        connector=aiohttp.TCPConnector(
            limit=connections, ttl_dns_cache=300, resolver=OutsideOnly(site.reach.home)
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=READ_BUFFER,
    )


async def receive(
    session: aiohttp.ClientSession,
    site: Site,
    url: str,
    promise: Promise,
    folder: DatasetFolder,
    patience: Patience,
    *,
    fresh: bool,
    begun: bool,
    at_once: bool = True,
) -> Part:
    """The bytes at `url`, as Site.file_url gave it, in a part; goes on with what there is of it.

    `fresh` asks caches on the way to stand aside, and begins at the first byte. `begun` is False
    where there can be no part yet: the disk is not asked then. Without `at_once`, what is in memory
    is not looked at: `Landing` hashes it, with others.

    Raises:
        Interrupted, TooQuick, NotShown: see there. The part stays.
        NotPromised, StableMismatch: the bytes are not those of the md5.
        NotAllowed: it lies elsewhere than on the site's hosts, or is not for training.
        UrushiError: the host challenges programs.
        DiskFullError, RequestError: the disk refuses.
    """
    part = part_of(folder, promise.md5)
    with translated(part.path):
        if fresh:
            part.discard()
        elif begun and part.path.exists():
            await asyncio.to_thread(part.resume)
            if await part.digest() == promise.md5:
                return part  # Killed after the last byte.
        await _stream(session, site, url, promise, folder, part, patience, fresh, at_once)
    return part


def adopt(path: Path, md5: str, most_pixels: int) -> Landed | None:
    """A file that already lies under its final name, if it is whole; else None, and it is removed.

    A process killed between the rename and the note of it leaves such files.
    """
    with translated(path):
        with open(path, "rb") as handle:
            digest = hashlib.file_digest(handle, new_md5).hexdigest()
        try:
            picture = glance(path, EXTENSIONS, most_pixels)
            if digest == md5 and path.suffix == f".{picture.extension}":
                return Landed(picture, path.stat().st_size)
        except Unusable:
            pass
        path.unlink()
        return None


async def _stream(
    session: aiohttp.ClientSession,
    site: Site,
    url: str,
    promise: Promise,
    folder: DatasetFolder,
    part: Part,
    patience: Patience,
    fresh: bool,
    at_once: bool,
) -> None:
    """The body into the part, until its md5 is right; see `receive` for `at_once`."""
    headers = {"Cache-Control": "no-cache"} if fresh else {}
    response = await _open(session, site, url, headers | part.question(), patience)
    try:
        _begin(response, part, promise)
        resumed = part.length > 0
        broken = await _receive(response, part, promise, patience)
    except BaseException:
        part.close()
        raise
    finally:
        response.close()
    if broken is None and part.is_in_memory and not at_once:
        return
    if await part.digest() == promise.md5:
        return
    if broken is not None:
        part.close()
        if part.length < WORTH_RESUMING:
            part.discard()
        raise broken
    if resumed:
        part.discard()  # Two copies, one behind the other: not one that could be compared with.
        raise Interrupted("its parts do not fit together")
    raise await asyncio.to_thread(put_aside, part, promise, folder)


def _begin(response: aiohttp.ClientResponse, part: Part, promise: Promise) -> None:
    """Brings the part to where the body of the response begins. Raises Interrupted."""
    encoded = response.headers.get("Content-Encoding", "identity") != "identity"
    if response.status == 200:
        # Also where a range was asked for: the server has none, or the file is another one by now.
        length = response.content_length if promise.bytes is None else promise.bytes
        part.restart(None if encoded else _validator(response), length)
        return
    found = re.fullmatch(
        r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip()
    )
    total = promise.bytes
    fits = (
        response.status == 206
        and found is not None
        and not encoded
        and int(found[1]) == part.length
        and (total is None or found[2] in ("*", str(total)))
    )
    if not fits:
        part.discard()
        raise Interrupted("the rest that it sends is not the rest that was asked for")
    part.go_on()


def _validator(response: aiohttp.ClientResponse) -> str | None:
    """What names these very bytes: a strong ETag, or else the date of their last change."""
    etag = response.headers.get("ETag", "")
    if etag.startswith('"'):
        return etag
    return response.headers.get("Last-Modified")


async def _receive(
    response: aiohttp.ClientResponse, part: Part, promise: Promise, patience: Patience
) -> Interrupted | None:
    """The body into the part. What broke it off, if something did: the md5 may be right even so,
    where a server closes in a way that reads as an error after the last byte."""
    most = MOST_BYTES if promise.bytes is None else promise.bytes
    since, then = monotonic(), part.length
    while True:
        try:  # The network's errors alone: the disk's are the caller's.
            chunk = await response.content.read(CHUNK)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            return Interrupted(reason(error))
        if not chunk:
            return None
        if part.length + len(chunk) > most:
            part.discard()
            raise NotPromised("it is longer than the post states")
        part.write(chunk)
        if part.md5.is_behind:
            await part.md5.settle()
        now = monotonic()
        if now - since >= patience.slow_for:
            if part.length - then < patience.slow * (now - since):
                return Interrupted("it comes too slowly")
            since, then = now, part.length


async def _open(
    session: aiohttp.ClientSession,
    site: Site,
    url: str,
    headers: dict[str, str],
    patience: Patience,
) -> aiohttp.ClientResponse:
    """The response whose body is the file or the rest of it. `url` is one that the site allows."""
    here = url
    for hop in range(MOST_REDIRECTS + 1):
        allowed = site.file_url(here) if hop else url
        if allowed is None:
            raise NotAllowed(f"{url} leads to {here}, which is none of the site's hosts")
        try:
            async with asyncio.timeout(patience.answer):
                response = await session.get(allowed, headers=headers, allow_redirects=False)
        except aiohttp.ClientSSLError as error:
            raise UrushiError(not_itself(error.host, reason(error))) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if full := no_room_for(error, site.address):
                raise UrushiError(full) from error
            unreachable = isinstance(error, NO_CONNECTION)
            raise Interrupted(reason(error), unreachable=unreachable) from error
        if response.status not in (301, 302, 303, 307, 308):
            break
        here = urljoin(str(response.url), response.headers.get("Location", ""))
        response.release()
    status = response.status
    if status == 200 or (status in (206, RANGES_REFUSED) and "Range" in headers):
        robots = response.headers.get("X-Robots-Tag", "").lower()
        if any(word in robots.replace(",", " ").split() for word in NO_TRAINING):
            response.close()
            raise NotAllowed("its host asks that it not be used for training (X-Robots-Tag)")
        return response
    response.close()
    if response.headers.get("cf-mitigated"):
        raise UrushiError(
            f"{site.address} challenges programs ({status}), and urushi goes round no challenge. "
            "Set [download].contact to your user name there, or ask its admins."
        )
    if status in THROTTLED:
        raise TooQuick(status, response.headers.get("Retry-After"))
    if status in (*NOT_THERE, 403, 410):
        raise NotShown(status)
    raise Interrupted(f"HTTP {status}")
