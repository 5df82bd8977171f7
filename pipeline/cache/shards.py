"""Shards onto disk, one after the other, each with a receipt: a kill costs the one being made.

When all are there, the index, the failures and the receipt of the whole follow.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from pipeline.artefacts.chain import FAILURES_FILE, INDEX_FILE
from pipeline.artefacts.files import write_bytes
from pipeline.artefacts.receipts import Receipt, done, write_receipt
from pipeline.artefacts.records import Failure, LatentRecord, TextRecord, write_records
from pipeline.cache.plan import Item, Shard
from pipeline.errors import UrushiError
from pipeline.progress import Bar, Progress


@dataclass(frozen=True)
class Encoded:
    """One shard's content: safetensors bytes (none where no row is good) and its rows' md5s."""

    content: bytes
    rows: tuple[str, ...]
    failures: tuple[Failure, ...]
    counts: dict[str, int]
    """Other things worth counting, summed over shards into the receipt."""


Encode = Callable[[Shard[Item], Bar], Encoded]


@dataclass(frozen=True)
class Work(Generic[Item]):
    """What is to be cached in one folder. `stage` is "latents" or "text", `what` names it aloud."""

    folder: Path
    stage: str
    fingerprint: str
    inputs: dict[str, Any]
    source: str
    """Where to look when nothing comes out."""
    shards: tuple[Shard[Item], ...]
    what: str
    unit: str
    required: frozenset[str] = frozenset()
    """md5s without which the rest is of no use."""


def make(
    work: Work[Item],
    encoder: Callable[[], Encode[Item]],
    record: Callable[[Item, str, int], LatentRecord | TextRecord],
    progress: Progress,
) -> Receipt:
    """Makes the shards that are missing and finishes the folder. Hold the dataset's lock.

    `encoder` loads the model; it is called only where some shard is missing. `record` makes the
    index's row from (item, shard, row).

    Raises:
        UrushiError: not one row could be encoded, or not one that is required.
    """
    started = time.monotonic()
    receipts = {shard.name: _proof(work, shard) for shard in work.shards}
    missing = [shard for shard in work.shards if receipts[shard.name] is None]
    total = sum(len(shard.items) for shard in work.shards)
    finished = total - sum(len(shard.items) for shard in missing)
    if missing:
        encode = encoder()
        with progress.bar(work.what, total, work.unit, done=finished) as bar:
            for shard in missing:
                receipts[shard.name] = _write(work, shard, encode(shard, bar))
    found = [(shard, receipt) for shard in work.shards if (receipt := receipts[shard.name])]
    return _finish(work, found, record, time.monotonic() - started)


def _proof(work: Work[Item], shard: Shard[Item]) -> Receipt | None:
    """A shard's receipt, but not of one with failures: what could not be read may be there now."""
    receipt = done(work.folder, shard.fingerprint(work.fingerprint), name=shard.receipt)
    return None if receipt is not None and receipt.summary["failures"] else receipt


def _write(work: Work[Item], shard: Shard[Item], encoded: Encoded) -> Receipt:
    path = work.folder / shard.name
    if encoded.rows:
        write_bytes(path, encoded.content)
    return write_receipt(
        work.folder,
        f"{work.stage} shard",
        shard.fingerprint(work.fingerprint),
        inputs={"cache": work.fingerprint},
        outputs=[path] if encoded.rows else [],
        summary={
            "rows": list(encoded.rows),
            "failures": [failure.model_dump() for failure in encoded.failures],
            "counts": encoded.counts,
        },
        name=shard.receipt,
    )


def _finish(
    work: Work[Item],
    found: Sequence[tuple[Shard[Item], Receipt]],
    record: Callable[[Item, str, int], LatentRecord | TextRecord],
    seconds: float,
) -> Receipt:
    records: list[LatentRecord | TextRecord] = [
        row for shard, receipt in found for row in _records(shard, receipt, record)
    ]
    failures = [Failure(**row) for _, receipt in found for row in receipt.summary["failures"]]
    failures.sort(key=lambda failure: failure.md5)
    write_records(work.folder / FAILURES_FILE, failures)
    lacking = work.required - {row.md5 for row in records}
    if not records or lacking:
        reasons = [f.reason for f in failures if f.md5 in lacking or not lacking]
        raise UrushiError(
            f"The {work.what} are of no use: {reasons[0] if reasons else 'there are none'} "
            f"({len(failures)} failures in {work.folder / FAILURES_FILE}). "
            f"Check {work.source} and run `urushi cache` again."
        )
    _remove_strays(work, [shard for shard, _ in found])
    records.sort(key=_place)
    write_records(work.folder / INDEX_FILE, records)
    files: list[str] = [shard.name for shard, receipt in found if receipt.outputs]
    return write_receipt(
        work.folder,
        work.stage,
        work.fingerprint,
        inputs=work.inputs,
        outputs=[work.folder / name for name in (*files, INDEX_FILE, FAILURES_FILE)],
        summary={
            work.stage: len(records),
            "shards": len(files),
            "failures": len(failures),
            **_counts(receipt for _, receipt in found),
        },
        seconds=seconds,
    )


def _records(
    shard: Shard[Item],
    receipt: Receipt,
    record: Callable[[Item, str, int], LatentRecord | TextRecord],
) -> list[LatentRecord | TextRecord]:
    items = {item.md5: item for item in shard.items}
    return [record(items[md5], shard.name, row) for row, md5 in enumerate(receipt.summary["rows"])]


def _place(row: LatentRecord | TextRecord) -> tuple[str, int, int]:
    """A picture's largest bucket first, and its variants in order."""
    area = row.width * row.height if isinstance(row, LatentRecord) else 0
    return row.md5, -area, row.variant


def _counts(receipts: Iterable[Receipt]) -> dict[str, int]:
    total: dict[str, int] = {}
    for receipt in receipts:
        for name, count in receipt.summary["counts"].items():
            total[name] = total.get(name, 0) + count
    return total


def _remove_strays(work: Work[Item], shards: Sequence[Shard[Item]]) -> None:
    """Shards of another size, from a run that was stopped before the recipe was changed."""
    kept = {name for shard in shards for name in (shard.name, shard.receipt)}
    for pattern in ("*.safetensors", "*.receipt.json"):
        for path in work.folder.glob(pattern):
            if path.name not in kept:
                path.unlink()
