"""Verified originals into images/: what later stages read, and the receipt that comes last."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.artefacts.alike import Seen, alike
from pipeline.artefacts.chain import (
    ALIKE_FILE,
    FAILURES_FILE,
    FORMERS_FILE,
    IMAGES_FILE,
    LOOKS_FILE,
)
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.receipts import NAME, Receipt, write_receipt
from pipeline.artefacts.records import (
    Alike,
    Failure,
    FormerNames,
    ImageRecord,
    LookRecord,
    write_records,
)
from pipeline.artefacts.workspace import DatasetFolder


@dataclass(frozen=True)
class Export:
    """What a dataset comes to."""

    images: Iterable[ImageRecord]
    """By rising md5. Read once: there may be more than fit into memory."""
    failures: Iterable[Failure]
    """What should have come and could not."""
    seen: Sequence[Seen]
    """How the images look."""
    left: Mapping[str, int]
    """Every reason for which something was not taken, and how often."""
    formers: Callable[[Iterable[str]], Mapping[str, tuple[str, ...]]] = lambda artists: {}
    """What artists were called before, as far as it is known."""


def merged_tags(all_tags: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, tuple[str, ...]]:
    """The tags of several posts of one picture: the first one's, then what only others have.

    An artist whom only one of the posts names must not be lost: captions leave out by category.
    """
    merged: dict[str, dict[str, None]] = {}
    for tags in all_tags:
        for category, names in tags.items():
            merged.setdefault(category, {}).update(dict.fromkeys(names))
    return {category: tuple(names) for category, names in merged.items() if names}


def write_images(
    folder: DatasetFolder, asked: str, export: Export, *, inputs: dict[str, Any], seconds: float
) -> Receipt:
    """Writes images.jsonl, failures.jsonl, looks.jsonl, alike.jsonl, former_names.jsonl where an
    artist had one, and, last, the receipt for `asked`."""
    failures = sorted(export.failures, key=lambda failure: (failure.md5, failure.reason))
    groups = alike(export.seen)
    rows, failed = folder.images / IMAGES_FILE, folder.images / FAILURES_FILE
    near, looks = folder.images / ALIKE_FILE, folder.images / LOOKS_FILE
    (folder.images / NAME).unlink(missing_ok=True)  # It would speak for files that change now.
    md5s: list[str] = []
    artists: set[str] = set()

    def noted() -> Iterator[ImageRecord]:
        for image in export.images:
            md5s.append(image.md5)
            artists.update(image.tags.get("artist", ()))
            yield image

    write_records(rows, noted())
    write_records(failed, failures)
    write_records(
        looks,
        (
            LookRecord(
                md5=seen.md5,
                width=seen.size.width,
                height=seen.size.height,
                likeness=seen.likeness,
            )
            for seen in export.seen
        ),
    )
    write_records(near, (Alike(md5s=tuple(group)) for group in groups))
    outputs = [rows, failed, looks, near]
    names = folder.images / FORMERS_FILE
    names.unlink(missing_ok=True)
    if formers := export.formers(artists):
        write_records(
            names,
            (FormerNames(artist=artist, former=formers[artist]) for artist in sorted(formers)),
        )
        outputs.append(names)
    return write_receipt(
        folder.images,
        "download",
        asked,
        inputs=inputs,
        outputs=outputs,
        summary={
            "images": len(md5s),
            "failures": len(failures),
            "pictures": fingerprint(md5s=md5s),
            "alike": len(groups),
            "left": dict(export.left),
        },
        seconds=seconds,
    )
