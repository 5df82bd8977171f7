"""One shard: a few dozen originals into a folder of bucketed pictures, their rows and a receipt.

Where pictures are not kept, the rows alone: the cache reads the originals as they say.

A shard is the unit of work, of resume and of distribution. `make_shard` is a function of its task
alone, so it runs here, in another process, or on another machine that sees the same files.
"""

import io
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pipeline.artefacts.chain import FAILURES_FILE, INDEX_FILE
from pipeline.artefacts.executor import Advance
from pipeline.artefacts.files import translated, write_bytes
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.locks import in_turn
from pipeline.artefacts.receipts import Receipt, done, write_receipt
from pipeline.artefacts.records import Failure, ResizedRecord, write_records
from pipeline.pictures.placement import Placement
from pipeline.recipe.resize import Format
from pipeline.resize.ladder import Ladder, plan_for
from pipeline.size import Size

if TYPE_CHECKING:
    from PIL.Image import Image

SHARD = 64
"""Pictures in a shard: a few seconds of work, which is what a kill loses per process."""


@dataclass(frozen=True)
class Original:
    """A picture to resize."""

    md5: str
    path: str
    """As ImageRecord.path."""


@dataclass(frozen=True)
class ShardTask:
    """All that making one shard depends on."""

    folder: Path
    fingerprint: str
    root: Path
    """The dataset's folder."""
    originals: tuple[Original, ...]
    ladders: tuple[Ladder, ...]
    format: Format
    keep: bool = True
    """Whether the pictures are made, or only their places found."""

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
    from pipeline.pictures.read import vips_engine
    from pipeline.pictures.unreadable import Unreadable

    started = time.monotonic()
    _clear(task.folder)
    engine = vips_engine() if task.keep else None
    if engine is not None:
        engine.prepare()
    rows: list[ResizedRecord] = []
    failures: list[Failure] = []
    engines: Counter[str] = Counter()
    for original in task.originals:
        try:
            rows += _kept(task, original, engine, engines) if task.keep else _placed(task, original)
        except Unreadable as error:
            failures.append(Failure(md5=original.md5, reason=str(error)))
        advance(1)
    index, failed = task.folder / INDEX_FILE, task.folder / FAILURES_FILE
    write_records(index, rows)
    write_records(failed, failures)
    write_receipt(
        task.folder,
        "resize shard",
        task.fingerprint,
        inputs={"pictures": len(task.originals), "format": task.format, "keep": task.keep},
        outputs=[*(task.folder / row.file for row in rows if task.keep), index, failed],
        summary={
            "engines": dict(sorted(engines.items())),
            "libvips": engine.version() if engine is not None else "",
        },
        seconds=time.monotonic() - started,
    )


def _kept(
    task: ShardTask, original: Original, engine: ModuleType | None, engines: Counter[str]
) -> list[ResizedRecord]:
    """Stores `original` in each of its places; the first has the picture's plain name."""
    from pipeline.pictures.read import read_fitted

    path, plan = task.root / original.path, plan_for(task.ladders, original.md5)
    rows = []
    for number, fitted in enumerate(read_fitted(path, plan, engine=engine)):
        name = f"{original.md5}{f'-{number + 1}' if number else ''}.{task.format}"
        write_bytes(task.folder / name, _encoded(fitted.image, task.format))
        engines[fitted.engine] += 1
        rows.append(_row(original.md5, name, fitted.original, fitted.placement))
    return rows


def _placed(task: ShardTask, original: Original) -> list[ResizedRecord]:
    """The places of `original`, by its header alone."""
    from pipeline.pictures.read import read_places

    plan = plan_for(task.ladders, original.md5)
    size, placements = read_places(task.root / original.path, plan)
    return [_row(original.md5, original.path, size, placement) for placement in placements]


def _row(md5: str, file: str, original: Size, placement: Placement) -> ResizedRecord:
    return ResizedRecord(
        md5=md5,
        file=file,
        width=placement.bucket.width,
        height=placement.bucket.height,
        original_width=original.width,
        original_height=original.height,
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
