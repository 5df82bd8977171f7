"""A [folder] recipe into images/: pictures that the user has, hashed, checked, and left alone.

Tags come from NAME.txt beside NAME.jpg, comma-separated, and count as general tags: whoever wrote
them meant them for the caption. Sentences come from NAME.caption, one a line. Of [exclude], md5s,
tags and artists are asked for; a sidecar does not say which of its words is an artist, so that any
may be.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.artefacts.alike import Seen
from pipeline.artefacts.chain import download_fingerprint
from pipeline.artefacts.files import unjudged
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.masks import is_label
from pipeline.artefacts.receipts import Receipt
from pipeline.artefacts.records import Failure, ImageRecord
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.decoders import decoders
from pipeline.download.header import FOLDER_EXTENSIONS, Unusable
from pipeline.download.images import Export, merged_tags, write_images
from pipeline.download.rules import Exclusion, exclusions
from pipeline.errors import RequestError
from pipeline.progress import Progress
from pipeline.recipe import DatasetRecipe
from pipeline.recipe.dataset import Folder
from pipeline.size import Size

SUFFIXES = frozenset(f".{extension}" for extension in (*FOLDER_EXTENSIONS, "jpeg"))
SIDECAR = ".txt"
SENTENCES = ".caption"
THREADS = 2
"""Pictures read and decoded at the same time."""


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder, and a digest of how they and their sidecars lie there."""

    pictures: tuple[Path, ...]
    digest: str


def look(asked: Folder, masks: Path | None = None) -> Listing:
    """What lies in the folder now, but for masks: files named as such, and the folder `masks`.

    Raises:
        RequestError: it is not there, cannot be read, or holds no pictures.
    """
    root = asked.path
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise RequestError(f"[folder].path = {root} {what}.")
    found = sorted(_walk(root, masks))
    pictures = tuple(path for path in found if path.suffix.lower() in SUFFIXES)
    if not pictures:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise RequestError(f"[folder].path = {root} holds no pictures ({kinds}).")
    marks = [[str(path.relative_to(root)), *_mark(path)] for path in found]
    return Listing(pictures, fingerprint(root=str(root), files=marks))


def from_folder(
    dataset: DatasetRecipe, listing: Listing, folder: DatasetFolder, progress: Progress
) -> Receipt:
    """Records the pictures of `listing` in `folder`, whose lock is held.

    Raises:
        RequestError: none of them can be used, a list of exclusions cannot be read, or the
            workspace cannot be written to.
    """
    began = time.monotonic()
    asked = dataset.folder
    assert asked is not None
    barred = exclusions(dataset.exclude)
    found: dict[str, _Found] = {}
    failures: list[Failure] = []
    left: Counter[str] = Counter()
    never: dict[str, Exclusion] = {}
    with (
        progress.bar(f"download {dataset.name}", len(listing.pictures), "pictures") as bar,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        for result in pool.map(lambda path: _read(path, asked.most_pixels), listing.pictures):
            if isinstance(result, Failure):
                failures.append(result)
                left[result.reason.partition(": ")[2]] += 1
                bar.note(f"{len(failures)} not usable")
            elif rule := _barred(result.record, barred):
                left[f"excluded: {rule}"] += 1
                never[result.pixels] = rule
            elif first := found.get(result.pixels):
                # Equal pixels are one picture, whatever file they lie in: the first one's place,
                # the words of all.
                tags = merged_tags((first.record.tags, result.record.tags))
                texts = tuple(dict.fromkeys((*first.record.texts, *result.record.texts)))
                record = first.record.model_copy(update={"tags": tags, "texts": texts})
                found[result.pixels] = replace(first, record=record)
                left["double: its pixels are those of another file"] += 1
            else:
                found[result.pixels] = result
            bar.advance()
    for pixels in never.keys() & found.keys():  # The same picture in another file.
        left[f"excluded: {never[pixels]}, same pixels"] += 1
        del found[pixels]
    if not found:
        reasons = "; ".join(sorted({failure.reason for failure in failures} or left)[:3])
        raise RequestError(
            f"None of the {len(listing.pictures)} pictures in [folder].path can be used: {reasons}."
        )
    kept = sorted(found.values(), key=lambda one: one.record.md5)
    return write_images(
        folder,
        download_fingerprint(dataset),
        Export(
            [one.record for one in kept],
            failures,
            [Seen(one.record.md5, one.size, one.likeness) for one in kept],
            left,
        ),
        inputs={"folder": listing.digest},
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True)
class _Found:
    record: ImageRecord
    size: Size
    pixels: str
    likeness: int


def _barred(record: ImageRecord, barred: Sequence[Exclusion]) -> Exclusion | None:
    """The rule that leaves a picture out, if one does."""
    words = {"_".join(tag.lower().split()) for tags in record.tags.values() for tag in tags}
    for rule in barred:
        if rule.kind == "md5" and rule.pattern == record.md5:
            return rule
        if rule.kind in ("artist", "tag") and rule.pattern in words:
            return rule
    return None


def _walk(root: Path, masks: Path | None) -> Iterator[Path]:
    """Pictures and sidecars. Hidden files are left out: thumbnails and resource forks are such."""

    def refuse(error: OSError) -> None:
        raise RequestError(f"{error.filename} cannot be read: {error.strerror}.") from error

    for place, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [
            name for name in folders if not name.startswith(".") and Path(place, name) != masks
        ]
        for name in names:
            path = Path(place, name)
            if name.startswith(".") or is_label(name):
                continue
            if path.suffix.lower() in (*SUFFIXES, SIDECAR, SENTENCES):
                yield path


def _mark(path: Path) -> list[Any]:
    try:
        stat = path.stat()
    except OSError:  # A dangling link, say: it is told of when it is read.
        return [None, None]
    return [stat.st_size, stat.st_mtime_ns]


def _read(path: Path, most_pixels: int) -> _Found | Failure:
    md5 = ""
    try:
        with unjudged(path):
            with open(path, "rb") as handle:
                hasher = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False))
            md5 = hasher.hexdigest()
            picture, looks = decoders().examine(path, FOLDER_EXTENSIONS, most_pixels)
            tags = _tags(path.with_suffix(SIDECAR))
            texts = tuple(dict.fromkeys(_lines(path.with_suffix(SENTENCES))))
    except Unusable as error:
        return Failure(md5=md5, reason=f"{path}: {error}")
    except OSError as error:
        return Failure(md5=md5, reason=f"{path}: it cannot be read: {error.strerror or error}")
    record = ImageRecord(
        md5=md5,
        path=str(path.absolute()),
        width=picture.size.width,
        height=picture.size.height,
        tags={"general": tags} if tags else {},
        score=None,
        rating="general",
        source=path.name,
        texts=texts,
    )
    return _Found(record, picture.size, looks.pixels, looks.likeness)


def _tags(path: Path) -> tuple[str, ...]:
    """The tags in NAME.txt, separated by commas and line ends."""
    parts = (part.strip() for line in _lines(path) for part in line.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def _lines(path: Path) -> list[str]:
    """The lines of a sidecar that say something; none where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise Unusable(f"its {path.name} is not UTF-8 text") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
