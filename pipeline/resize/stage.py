"""Originals into pictures on the bucket ladder of the build recipe's [resize].

    urushi resize RECIPE

Made in shards. A killed run is taken up at the first shard without a receipt; the index comes last.
With [resize].keep = false only the pictures' places are found, by their headers, and none is made.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.artefacts.chain import (
    FAILURES_FILE,
    IMAGES_FILE,
    INDEX_FILE,
    images_receipt,
    resize_fingerprint,
)
from pipeline.artefacts.executor import Executor, Processes, cores
from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.locks import locked
from pipeline.artefacts.receipts import NAME, Receipt, done, write_receipt
from pipeline.artefacts.records import (
    Failure,
    ImageRecord,
    ResizedRecord,
    each_record,
    write_records,
)
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.errors import UrushiError
from pipeline.progress import Progress
from pipeline.recipe import DatasetRecipe
from pipeline.recipe.resize import Resize
from pipeline.resize.ladder import Ladder, is_upscaled, ladders
from pipeline.resize.shards import (
    SHARD,
    Original,
    ShardTask,
    make_shard,
    shard_done,
    shard_fingerprint,
    shard_folder,
)
from pipeline.size import Size

_WORTH_PROCESSES = 200_000_000
"""Pixels of originals, about four seconds of work: below that, starting processes takes longer."""
_UNKNOWN_PIXELS = 4_000_000
"""What is assumed of an original whose source did not state its size."""


def run(job: Job, progress: Progress) -> Outcome:
    """Bucketed pictures of every dataset of `job`.

    Raises:
        RequestError: a dataset has no pictures yet, or [resize] leaves no bucket.
        UrushiError: not one picture of a dataset can be used.
        DiskFullError: no room; finished shards stand.
    """
    resize = job.recipe.resize
    rungs = ladders(resize)
    already, lines = True, []
    for _, dataset in job.datasets:
        folder = job.dataset_folder(dataset)
        fingerprint = resize_fingerprint(resize, images_receipt(job, dataset))
        receipt = _finished(folder.resized(fingerprint), fingerprint)
        if receipt is None:
            already = False
            receipt = _resize(dataset, folder, fingerprint, resize, rungs, job.executor, progress)
        lines.append(
            f"{dataset.name}: {receipt.summary['pictures']:,} pictures in "
            f"{len(receipt.summary['buckets'])} buckets"
        )
    return Outcome("resize", already, ", ".join(lines))


def _finished(resized: Path, fingerprint: str) -> Receipt | None:
    """The stage's receipt, if it and every shard's hold and all pictures are there."""
    receipt = done(resized, fingerprint)
    if receipt is None:
        return None
    shards = (
        done(shard_folder(resized, number), shard_fingerprint(fingerprint, number))
        for number in range(receipt.inputs["shards"])
    )
    return receipt if all(shards) else None


def _resize(
    dataset: DatasetRecipe,
    folder: DatasetFolder,
    fingerprint: str,
    resize: Resize,
    rungs: tuple[Ladder, ...],
    executor: Executor | None,
    progress: Progress,
) -> Receipt:
    started = time.monotonic()
    resized = folder.resized(fingerprint)
    with locked(folder.root):
        originals, pixels = _originals(folder.images / IMAGES_FILE)
        tasks = _tasks(originals, folder.root, resized, fingerprint, resize, rungs)
        pending = [task for task in tasks if shard_done(task) is None]
        left = sum(len(task.originals) for task in pending)
        with progress.bar(
            f"resize {dataset.name}", len(originals), "pictures", done=len(originals) - left
        ) as bar:
            worth = resize.keep and pixels * left >= _WORTH_PROCESSES * len(originals)
            processes = cores() if worth else 1
            (executor or Processes(processes)).run(make_shard, pending, bar.advance)
        failures = [
            failure
            for task in tasks
            for failure in each_record(task.folder / FAILURES_FILE, Failure)
        ]
        summary = _summary(tasks, failures)
        if not summary["pictures"]:
            # What is wrong with all of them may be put right: they are tried again.
            for task in tasks:
                (task.folder / NAME).unlink()
            raise UrushiError(_none_usable(dataset, failures))
        index, failed = resized / INDEX_FILE, resized / FAILURES_FILE
        write_records(index, _rows(tasks))
        write_records(failed, failures)
        receipt = write_receipt(
            resized,
            "resize",
            fingerprint,
            inputs={"ladder": resize.model_dump(mode="json"), "shards": len(tasks)},
            outputs=[index, failed],
            summary=summary,
            seconds=time.monotonic() - started,
        )
    _say(dataset, receipt.summary, failures, failed, progress)
    return receipt


def _originals(path: Path) -> tuple[list[Original], int]:
    """In order of md5, and their pixels together. Records with all their tags are not kept."""
    originals, pixels = [], 0
    for image in each_record(path, ImageRecord):
        originals.append(Original(image.md5, image.path))
        pixels += image.width * image.height or _UNKNOWN_PIXELS
    return sorted(originals, key=lambda original: original.md5), pixels


def _tasks(
    originals: Sequence[Original],
    root: Path,
    resized: Path,
    fingerprint: str,
    resize: Resize,
    rungs: tuple[Ladder, ...],
) -> list[ShardTask]:
    """Runs of SHARD pictures."""
    return [
        ShardTask(
            folder=shard_folder(resized, number),
            fingerprint=shard_fingerprint(fingerprint, number),
            root=root,
            originals=tuple(originals[start : start + SHARD]),
            ladders=rungs,
            format=resize.format,
            keep=resize.keep,
        )
        for number, start in enumerate(range(0, len(originals), SHARD))
    ]


def _rows(tasks: Sequence[ShardTask]) -> Iterator[ResizedRecord]:
    """The rows of all shards, which are in order of md5 as the shards are; none is kept."""
    for task in tasks:
        place = f"{task.folder.parent.name}/{task.folder.name}"
        for row in each_record(task.folder / INDEX_FILE, ResizedRecord):
            yield row.model_copy(update={"file": f"{place}/{row.file}"}) if task.keep else row


def _summary(tasks: Sequence[ShardTask], failures: Sequence[Failure]) -> dict[str, Any]:
    md5s: set[str] = set()
    upscaled = 0
    buckets: Counter[Size] = Counter()
    for row in _rows(tasks):
        bucket = Size(row.width, row.height)
        md5s.add(row.md5)
        upscaled += is_upscaled(Size(row.original_width, row.original_height), bucket)
        buckets[bucket] += 1
    engines: Counter[str] = Counter()
    libvips: set[str] = set()
    for task in tasks:
        receipt = shard_done(task)
        if receipt is not None:
            engines.update(receipt.summary["engines"])
            libvips.add(receipt.summary["libvips"])
    return {
        "pictures": len(md5s),
        "kept": all(task.keep for task in tasks),
        "failures": len(failures),
        "upscaled": upscaled,
        "buckets": {str(bucket): count for bucket, count in sorted(buckets.items())},
        "engines": dict(sorted(engines.items())),
        "libvips": sorted(libvips - {""}),
    }


def _none_usable(dataset: DatasetRecipe, failures: Sequence[Failure]) -> str:
    if not failures:
        return f"{dataset.name} has no pictures. Widen its query, or look into its folder."
    first = failures[0]
    return (
        f"Not one of the {len(failures):,} pictures of {dataset.name} can be used. "
        f"The first, {first.md5}: {first.reason}."
    )


def _say(
    dataset: DatasetRecipe,
    summary: dict[str, Any],
    failures: Sequence[Failure],
    failed: Path,
    progress: Progress,
) -> None:
    """The buckets and their counts, then whatever a person may want to act on."""
    buckets = ", ".join(f"{bucket} {count:,}" for bucket, count in summary["buckets"].items())
    progress.say(f"{dataset.name}: {summary['pictures']:,} pictures by bucket: {buckets}")
    if not summary["kept"]:
        progress.say("  none is stored: `urushi cache` reads the originals")
    if summary["upscaled"]:
        progress.say(f"  smaller than their bucket, and enlarged: {summary['upscaled']:,}")
    if failures:
        reasons = Counter(failure.reason for failure in failures).most_common(3)
        shown = ", ".join(f"{reason}: {count:,}" for reason, count in reasons)
        progress.say(f"  cannot be used: {len(failures):,} ({shown}), see {failed}")
