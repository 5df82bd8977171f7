"""Copies that came whole and are not what their posts promise: kept aside, to be compared with.

The same other picture twice is what the site has, and fetching it again would bring it again.
"""

from dataclasses import dataclass

from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.header import EXTENSIONS, Unusable, glance
from pipeline.download.parts import Part


@dataclass(frozen=True)
class Promise:
    """A file as a post states it."""

    md5: str
    bytes: int | None
    most_pixels: int
    """Refused beyond."""


class NotPromised(Exception):
    """What came, whole, is not the file that the post states."""


class StableMismatch(NotPromised):
    """It is the same other picture as the last time: what the site has is not what it says."""


def put_aside(part: Part, promise: Promise, folder: DatasetFolder) -> NotPromised:
    """What to raise over a whole file of another md5; a picture is kept.

    Waits for the disk.
    """
    digest = part.digest_at_once()
    part.keep()
    if promise.bytes is not None and part.length < promise.bytes:
        part.discard()
        return NotPromised("it is shorter than the post states")
    why = f"its bytes have the md5 {digest}"
    try:
        extension = glance(part.path, EXTENSIONS, promise.most_pixels).extension
    except Unusable:
        part.discard()
        return NotPromised(why)
    aside = folder.quarantine / f"{promise.md5}.{digest}.{extension}"
    if aside.is_file():
        part.discard()
        return StableMismatch(f"stable mismatch: {why}, twice; see {aside.name} in quarantine")
    aside.parent.mkdir(parents=True, exist_ok=True)
    part.path.rename(aside)
    part.forget()
    return NotPromised(why)


def aside_in(folder: DatasetFolder) -> set[str]:
    """The md5s under which copies came that were another picture."""
    return {path.name.partition(".")[0] for path in folder.quarantine.glob("*.*.*")}


def release(folder: DatasetFolder, md5: str) -> None:
    """Removes what was put aside for a file that has come after all."""
    for aside in folder.quarantine.glob(f"{md5}.*"):
        aside.unlink(missing_ok=True)
