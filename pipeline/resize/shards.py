"""One shard: a few dozen originals into a folder of bucketed pictures, their rows and a receipt.

A shard is the unit of work, of resume and of distribution. `make_shard` is a function of its task
alone, so it runs here, in another process, or on another machine that sees the same files.
"""

import io
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artefacts.chain import FAILURES_FILE, INDEX_FILE
from pipeline.artefacts.executor import Advance
from pipeline.artefacts.files import translated, write_bytes
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.locks import in_turn
from pipeline.artefacts.receipts import Receipt, done, write_receipt
from pipeline.artefacts.records import Failure, ResizedRecord, write_records
from pipeline.recipe.resize import Format
from pipeline.resize.ladder import Ladder

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipeline.resize.read import Fitted

SHARD = 64
"""Pictures in a shard: a few seconds of work, which is what a kill loses per process."""


@dataclass(frozen=True)
class Original:
    """A picture to resize."""

    md5: str
    path: Path


@dataclass(frozen=True)
class ShardTask:
    """All that making one shard depends on."""

    folder: Path
    fingerprint: str
    originals: tuple[Original, ...]
    ladders: tuple[Ladder, ...]
    format: Format

    @property
    def count(self) -> int:
        return len(self.originals)


def shard_folder(resized: Path, number: int) -> Path:
    """shards/00000 in the stage's folder."""
    return resized / "shards" / f"{number:05d}"


def shard_fingerprint(resized: str, number: int) -> str:
    """Of a shard of the stage's product `resized`, whose fingerprint covers ladder and pictures."""
    return fingerprint(stage="resize shard", resized=resized, number=number, size=SHARD)


def shard_done(task: ShardTask) -> Receipt | None:
    """The proof that the shard is made, or None."""
    return done(task.folder, task.fingerprint)


def make_shard(task: ShardTask, advance: Advance) -> None:
    """Makes every picture of `task`, then its rows, then its receipt; `advance` counts pictures.

    Of two that are given the same shard, as when a worker was lost and comes back, one waits and
    finds it made.

    Raises:
        DiskFullError, RequestError: the folder cannot be written to.
    """
    with translated(task.folder):
        task.folder.mkdir(parents=True, exist_ok=True)
    with in_turn(task.folder):
        if shard_done(task) is None:
            _make(task, advance)
        else:
            advance(task.count)


def _make(task: ShardTask, advance: Advance) -> None:
    from pipeline.resize.header import Unreadable
    from pipeline.resize.read import plan_for, read_fitted, vips_engine

    started = time.monotonic()
    _clear(task.folder)
    engine = vips_engine()
    if engine is not None:
        engine.prepare()
    rows: list[ResizedRecord] = []
    failures: list[Failure] = []
    engines: Counter[str] = Counter()
    for original in task.originals:
        try:
            places = read_fitted(original.path, plan_for(task.ladders, original.md5), engine=engine)
        except Unreadable as error:
            failures.append(Failure(md5=original.md5, reason=str(error)))
        else:
            for number, fitted in enumerate(places):
                row = _row(original.md5, number, fitted, task.format)
                write_bytes(task.folder / row.file, _encoded(fitted.image, task.format))
                engines[fitted.engine] += 1
                rows.append(row)
        advance(1)
    index, failed = task.folder / INDEX_FILE, task.folder / FAILURES_FILE
    write_records(index, rows)
    write_records(failed, failures)
    write_receipt(
        task.folder,
        "resize shard",
        task.fingerprint,
        inputs={"pictures": len(task.originals), "format": task.format},
        outputs=[*(task.folder / row.file for row in rows), index, failed],
        summary={
            "engines": dict(sorted(engines.items())),
            "libvips": engine.version() if engine is not None else "",
        },
        seconds=time.monotonic() - started,
    )


def _row(md5: str, number: int, fitted: "Fitted", kind: Format) -> ResizedRecord:
    """The row of a picture's place `number`; the first has the picture's plain name."""
    placement = fitted.placement
    return ResizedRecord(
        md5=md5,
        file=f"{md5}{f'-{number + 1}' if number else ''}.{kind}",
        width=placement.bucket.width,
        height=placement.bucket.height,
        original_width=fitted.original.width,
        original_height=fitted.original.height,
        scaled_width=placement.scaled.width,
        scaled_height=placement.scaled.height,
        crop_left=placement.left,
        crop_top=placement.top,
    )


def _encoded(image: "Image", kind: Format) -> bytes:
    """A file's content. With little effort: it is read back once or twice."""
    with io.BytesIO() as encoded:
        if kind == "webp":
            image.save(encoded, "WEBP", lossless=True, method=0, quality=0)
        elif kind == "png":
            image.save(encoded, "PNG", compress_level=1)
        else:
            image.save(encoded, "JPEG", quality=95, subsampling="4:4:4")
        return encoded.getvalue()


def _clear(folder: Path) -> None:
    """Removes what an unfinished shard left, so that nothing stands here that no row names."""
    with translated(folder):
        for leftover in folder.iterdir():
            leftover.unlink()
