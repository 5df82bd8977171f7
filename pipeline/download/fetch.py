"""One file over HTTP into its place: streamed to a temporary name, hashed, checked, renamed.

The md5 that the post states is the judge. What it does not cover is checked too: that the bytes
are a still picture of a known type that decodes to its end (some were cut off before their upload).
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import aiohttp

from pipeline.artefacts.files import TEMPORARY, sync_folder, translated
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.content import EXTENSIONS, Picture, Unusable, check
from pipeline.download.pages import NOT_THERE, THROTTLED
from pipeline.download.patience import Patience
from pipeline.download.sites import Site
from pipeline.download.trouble import reason
from pipeline.errors import UrushiError

CHUNK = 256 * 1024
READ_BUFFER = 1024 * 1024
MOST_BYTES = 512 * 1024 * 1024
"""Read of a file whose size the site does not state."""
MOST_REDIRECTS = 3
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


class NotPromised(Exception):
    """What came is not the file that the post states."""


class NotAllowed(Exception):
    """The file may not be fetched, or not be used."""


@dataclass(frozen=True)
class Landed:
    """A file in its place."""

    picture: Picture
    bytes: int


def open_session(site: Site, patience: Patience, connections: int) -> aiohttp.ClientSession:
    """A session for files. Needs a running loop; to be closed."""
    return aiohttp.ClientSession(
        # A picture is compressed already, and its md5 is that of the bytes as they lie there.
        headers={"User-Agent": site.user_agent, "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=patience.connect, sock_read=patience.silence
        ),
        connector=aiohttp.TCPConnector(limit=connections, ttl_dns_cache=300),
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=READ_BUFFER,
    )


async def fetch(
    session: aiohttp.ClientSession,
    site: Site,
    url: str,
    md5: str,
    size: int | None,
    folder: DatasetFolder,
    *,
    fresh: bool,
) -> Landed:
    """Fetches `url` to originals/ab/cd/MD5.ext; `size` in bytes, as the post states it.

    `fresh` asks caches on the way to stand aside.

    Raises:
        Interrupted, TooQuick, NotShown: see there.
        NotPromised: the bytes are not those of the md5.
        Unusable: they are, but are no usable picture.
        NotAllowed: it lies elsewhere than on the site's hosts, or is not for training.
        UrushiError: the host challenges programs.
        DiskFullError, RequestError: the disk refuses.
    """
    place = folder.original(md5, "x").parent
    temporary = place / f".{md5}.{os.getpid()}{TEMPORARY}"
    with translated(temporary):
        place.mkdir(parents=True, exist_ok=True)
        try:
            received = await _stream(session, site, url, md5, size, temporary, fresh)
            picture = await asyncio.to_thread(_settle, temporary, folder, md5)
        finally:
            temporary.unlink(missing_ok=True)
    return Landed(picture, received)


def adopt(path: Path, md5: str) -> Landed | None:
    """A file that already lies under its final name, if it is whole; else None, and it is removed.

    A process killed between the rename and the note of it leaves such files.
    """
    with translated(path):
        with open(path, "rb") as handle:
            digest = hashlib.file_digest(handle, _md5).hexdigest()
        try:
            picture = check(path, EXTENSIONS)
            if digest == md5 and path.suffix == f".{picture.extension}":
                return Landed(picture, path.stat().st_size)
        except Unusable:
            pass
        path.unlink()
        return None


def _settle(temporary: Path, folder: DatasetFolder, md5: str) -> Picture:
    """The checked file on disk for good under its name."""
    picture = check(temporary, EXTENSIONS)
    with open(temporary, "rb") as handle:
        os.fsync(handle.fileno())
    final = folder.original(md5, picture.extension)
    temporary.replace(final)
    sync_folder(final.parent)
    return picture


async def _stream(
    session: aiohttp.ClientSession,
    site: Site,
    url: str,
    md5: str,
    size: int | None,
    temporary: Path,
    fresh: bool,
) -> int:
    """The body into `temporary`; returns its bytes, whose md5 is right."""
    response = await _open(session, site, url, fresh)
    hasher = _md5()
    received = 0
    broken: Interrupted | None = None
    try:
        with open(temporary, "wb") as handle:
            try:
                async for chunk in _chunks(response):
                    received += len(chunk)
                    if received > (MOST_BYTES if size is None else size):
                        raise NotPromised("it is longer than the post states")
                    hasher.update(chunk)
                    handle.write(chunk)
            except Interrupted as error:
                # Some servers close in a way that reads as an error after the last byte: the md5
                # knows better.
                broken = error
    finally:
        response.close()
    if hasher.hexdigest() == md5:
        return received
    if broken is not None:
        raise broken
    if size is not None and received < size:
        raise NotPromised("it is shorter than the post states")
    raise NotPromised(f"its bytes have the md5 {hasher.hexdigest()}")


async def _open(
    session: aiohttp.ClientSession, site: Site, url: str, fresh: bool
) -> aiohttp.ClientResponse:
    """The response whose body is the file."""
    headers = {"Cache-Control": "no-cache"} if fresh else {}
    here = url
    for _ in range(MOST_REDIRECTS + 1):
        allowed = site.file_url(here)
        if allowed is None:
            raise NotAllowed(f"{url} leads to {here}, which is none of the site's hosts")
        try:
            response = await session.get(allowed, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            unreachable = isinstance(error, aiohttp.ClientConnectorError)
            raise Interrupted(reason(error), unreachable=unreachable) from error
        if response.status not in (301, 302, 303, 307, 308):
            break
        here = urljoin(str(response.url), response.headers.get("Location", ""))
        response.release()
    status = response.status
    if status == 200:
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


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body's bytes, the network's errors told apart from the disk's."""
    try:
        async for chunk in response.content.iter_chunked(CHUNK):
            yield chunk
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        raise Interrupted(reason(error)) from error


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)
