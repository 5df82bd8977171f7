"""Verified originals into images/: what later stages read, and the receipt that comes last."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.artefacts.chain import FAILURES_FILE, IMAGES_FILE
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.receipts import NAME, Receipt, write_receipt
from pipeline.artefacts.records import Failure, ImageRecord, write_records
from pipeline.artefacts.workspace import DatasetFolder


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
    folder: DatasetFolder,
    asked: str,
    images: Iterable[ImageRecord],
    failures: Iterable[Failure],
    *,
    inputs: dict[str, Any],
    seconds: float,
) -> Receipt:
    """Writes images.jsonl, failures.jsonl and, last, the receipt for the fingerprint `asked`."""
    images = sorted(images, key=lambda image: image.md5)
    failures = sorted(failures, key=lambda failure: (failure.md5, failure.reason))
    rows, failed = folder.images / IMAGES_FILE, folder.images / FAILURES_FILE
    (folder.images / NAME).unlink(missing_ok=True)  # It would speak for files that change now.
    write_records(rows, images)
    write_records(failed, failures)
    return write_receipt(
        folder.images,
        "download",
        asked,
        inputs=inputs,
        outputs=[rows, failed],
        summary={
            "images": len(images),
            "failures": len(failures),
            "pictures": fingerprint(md5s=[image.md5 for image in images]),
        },
        seconds=seconds,
    )
