"""Files that were verified when they came into a verdict on how they lie there today.

urushi download RECIPE --verify

Every file is hashed again. What is missing or no longer what it was is planned again, and the next
download fetches it; nothing is removed here. No site is asked.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pipeline.artefacts.chain import IMAGES_FILE
from pipeline.artefacts.receipts import NAME
from pipeline.artefacts.records import ImageRecord, read_records
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.store import Store
from pipeline.progress import Progress

THREADS = 2
"""Files read at the same time; hashing leaves Python's lock."""
TOGETHER = 64
"""Files handed out before the answers are waited for."""


@dataclass(frozen=True)
class Expected:
    """A file that should be there."""

    md5: str
    path: Path


@dataclass(frozen=True)
class Verified:
    """What a look at every file came to."""

    files: int
    wrong: tuple[tuple[Path, str], ...]
    """Each with what is wrong."""
    strays: tuple[Path, ...]
    """Files among the originals of which the store knows nothing."""


def verify_booru(store: Store, folder: DatasetFolder, progress: Progress, what: str) -> Verified:
    """Hashes every original that `store` has; what is wrong is planned again."""
    expected = [Expected(md5, folder.original(md5, ext)) for md5, ext in store.files()]
    wrong = []
    for one, why in _checked(expected, progress, what):
        if why:
            store.settle(one.md5, "planned", why)
            wrong.append((one.path, why))
    known = {one.path for one in expected}
    strays = sorted(p for p in folder.originals.rglob("*") if p.is_file() and p not in known)
    if wrong:
        (folder.images / NAME).unlink(missing_ok=True)
    return Verified(len(expected), tuple(wrong), tuple(strays))


def verify_folder(folder: DatasetFolder, progress: Progress, what: str) -> Verified:
    """Hashes every picture of a [folder]'s images.jsonl; if one is wrong, they are read again.

    Raises:
        UrushiError: the pictures were never recorded.
    """
    records = read_records(folder.images / IMAGES_FILE, ImageRecord)
    expected = [Expected(record.md5, folder.root / record.path) for record in records]
    checked = list(_checked(expected, progress, what))
    wrong = tuple((one.path, why) for one, why in checked if why)
    if wrong:
        (folder.images / NAME).unlink(missing_ok=True)
    return Verified(len(expected), wrong, ())


def _checked(
    expected: list[Expected], progress: Progress, what: str
) -> Iterator[tuple[Expected, str]]:
    """Each file with what is wrong with it, or ""."""
    files = iter(expected)
    wrong = 0
    with (
        ThreadPoolExecutor(THREADS) as pool,
        progress.bar(f"{what}: verify", len(expected), "pictures") as bar,
    ):
        while some := list(islice(files, TOGETHER)):
            for one, why in zip(some, pool.map(_wrong, some), strict=True):
                wrong += bool(why)
                if wrong:
                    bar.note(f"{wrong} wrong")
                yield one, why
                bar.advance()


def _wrong(one: Expected) -> str:
    try:
        with open(one.path, "rb") as handle:
            hasher = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False))
    except FileNotFoundError:
        return "it is not there"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    digest = hasher.hexdigest()
    return "" if digest == one.md5 else f"its bytes have the md5 {digest}"
