"""Shards onto disk, each with a receipt: a kill costs those that are being made.

When all are there, the index, the failures and the receipt of the whole follow. `make_shard` is a
function of its task alone, so it runs here, in another process, or on another machine that sees
the same files.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from pipeline.artefacts.chain import FAILURES_FILE, INDEX_FILE
from pipeline.artefacts.executor import Advance, Executor
from pipeline.artefacts.files import atomic, share
from pipeline.artefacts.receipts import Receipt, done, write_receipt
from pipeline.artefacts.records import Failure, LatentRecord, TextRecord, write_records
from pipeline.cache.encoders import Model, encoder
from pipeline.cache.plan import Item, Look, Shard, Text
from pipeline.errors import UrushiError
from pipeline.progress import Progress

ToRecord = Callable[[Item, str, int], LatentRecord | TextRecord]


@dataclass(frozen=True)
class ShardTask(Generic[Item]):
    """All that making one shard depends on."""

    folder: Path
    stage: str
    cache: str
    """Fingerprint of what all shards of the cache share."""
    shard: Shard[Item]
    model: Model

    @property
    def count(self) -> int:
        return len(self.shard.items)


@dataclass(frozen=True)
class Work(Generic[Item]):
    """What is to be cached in one folder. `stage` is "latents" or "text", `what` names it aloud."""

    folder: Path
    stage: str
    fingerprint: str
    cache: str
    """`fingerprint`, without what is in each shard's own."""
    inputs: dict[str, Any]
    """What the fingerprint is of, in words: `urushi cache --why` compares it."""
    source: str
    """Where to look when nothing comes out."""
    shards: tuple[Shard[Item], ...]
    model: Model
    what: str
    unit: str
    required: frozenset[str] = frozenset()
    """md5s without which the rest is of no use."""


def make(
    work: Work[Item], executor: Executor, record: ToRecord[Item], progress: Progress
) -> Receipt:
    """Makes the shards that are missing and finishes the folder. Hold the dataset's lock.

    The model is loaded only where some shard is missing. `record` makes the index's row from
    (item, shard, row).

    Raises:
        UrushiError: not one row could be encoded, or not one that is required.
    """
    started = time.monotonic()
    missing = [shard for shard in work.shards if _proof(work, shard) is None]
    if work.cache != work.fingerprint:
        _take_over(work.folder, {one.receipt: one.fingerprint(work.cache) for one in missing})
        missing = [shard for shard in missing if _proof(work, shard) is None]
    total = sum(len(shard.items) for shard in work.shards)
    if missing:
        finished = total - sum(len(shard.items) for shard in missing)
        tasks = [
            ShardTask(work.folder, work.stage, work.cache, shard, work.model) for shard in missing
        ]
        with progress.bar(work.what, total, work.unit, done=finished) as bar:
            try:
                executor.run(make_shard, tasks, bar.advance)
            finally:
                encoder.cache_clear()
    return _finish(work, record, time.monotonic() - started)


def make_shard(task: ShardTask[Item], advance: Advance) -> None:
    """Encodes one shard and writes it, then its receipt.

    Raises:
        DiskFullError, RequestError: the folder cannot be written to, or the model not loaded.
    """
    shard = task.shard
    of_shard = shard.fingerprint(task.cache)
    if done(task.folder, of_shard, name=shard.receipt) is not None:
        advance(task.count)  # By a worker that was given up for lost.
        return
    encoded = encoder(task.model)(shard, advance)
    path = task.folder / shard.name
    if encoded.rows:
        # Imported here: what is finished needs no torch.
        from safetensors.torch import save_file

        with atomic(path) as temporary:
            save_file(encoded.tensors, temporary)
    write_receipt(
        task.folder,
        f"{task.stage} shard",
        of_shard,
        inputs={"cache": task.cache},
        outputs=[path] if encoded.rows else [],
        summary={
            "rows": list(encoded.rows),
            "failures": [failure.model_dump() for failure in encoded.failures],
            "counts": encoded.counts,
        },
        name=shard.receipt,
    )


def _take_over(folder: Path, wanted: dict[str, str]) -> None:
    """Shards that an earlier cache has just so, with other masks in others of its shards: those
    whose receipts have the names and fingerprints of `wanted`."""
    for place in folder.parent.glob("*"):
        for name, fingerprint in list(wanted.items()):
            proof = done(place, fingerprint, name=name)
            if proof is not None:
                for file in (*proof.outputs, name):  # The proof comes last.
                    share(place / file, folder / file)
                del wanted[name]


def _proof(work: Work[Item], shard: Shard[Item]) -> Receipt | None:
    """A shard's receipt. One with failures is as done as any: nothing is tried twice."""
    return done(work.folder, shard.fingerprint(work.cache), name=shard.receipt)


def _made(work: Work[Item], shard: Shard[Item]) -> Receipt:
    receipt = _proof(work, shard)
    if receipt is None:
        raise UrushiError(
            f"{work.folder / shard.name} was made and is gone again. Does something else clear "
            "this folder? Run `urushi cache` again."
        )
    return receipt


def _finish(work: Work[Item], record: ToRecord[Item], seconds: float) -> Receipt:
    found = [(shard, _made(work, shard)) for shard in work.shards]
    # Places, not records: of a million rows those would be most of the memory.
    rows = [
        (_place(shard.items[place]), number, row)
        for number, (shard, receipt) in enumerate(found)
        for row, place in enumerate(receipt.summary["rows"])
    ]
    # Once a picture and reason, however many looks at it there are.
    failed = {(row["md5"], row["reason"]) for _, one in found for row in one.summary["failures"]}
    failures = [Failure(md5=md5, reason=reason) for md5, reason in sorted(failed)]
    write_records(work.folder / FAILURES_FILE, failures)
    lacking = work.required - {md5 for (md5, *_), _, _ in rows}
    if not rows or lacking:
        # What is wrong with all of them may be put right: these are tried again.
        for shard, receipt in found:
            if receipt.summary["failures"]:
                (work.folder / shard.receipt).unlink()
        reasons = [f.reason for f in failures if f.md5 in lacking or not lacking]
        raise UrushiError(
            f"The {work.what} are of no use: {reasons[0] if reasons else 'there are none'} "
            f"({len(failures)} failures in {work.folder / FAILURES_FILE}). "
            f"Check {work.source} and run `urushi cache` again."
        )
    _remove_strays(work)

    def in_order() -> Iterator[LatentRecord | TextRecord]:
        for _, number, row in sorted(rows):
            whose, proof = found[number]
            yield record(whose.items[proof.summary["rows"][row]], whose.name, row)

    write_records(work.folder / INDEX_FILE, in_order())
    files: list[str] = [shard.name for shard, receipt in found if receipt.outputs]
    return write_receipt(
        work.folder,
        work.stage,
        work.fingerprint,
        inputs=work.inputs,
        outputs=[work.folder / name for name in (*files, INDEX_FILE, FAILURES_FILE)],
        summary={
            work.stage: len(rows),
            "shards": len(files),
            "failures": len(failures),
            **_counts(receipt for _, receipt in found),
        },
        seconds=seconds,
    )


def _place(item: Look | Text) -> tuple[str, int, int]:
    """In the index: a picture's largest bucket first, and its variants in order."""
    return item.md5, -item.bucket.area if isinstance(item, Look) else 0, item.variant


def _counts(receipts: Iterable[Receipt]) -> dict[str, int]:
    total: dict[str, int] = {}
    for receipt in receipts:
        for name, count in receipt.summary["counts"].items():
            total[name] = total.get(name, 0) + count
    return total


def _remove_strays(work: Work[Item]) -> None:
    """Shards of another size, from a run that was stopped before the recipe was changed."""
    kept = {name for shard in work.shards for name in (shard.name, shard.receipt)}
    for pattern in ("*.safetensors", "*.receipt.json"):
        for path in work.folder.glob(pattern):
            if path.name not in kept:
                path.unlink()
