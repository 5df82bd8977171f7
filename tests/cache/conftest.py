import hashlib
import importlib.util
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.artefacts import chain
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.receipts import write_receipt
from pipeline.artefacts.records import (
    CaptionRecord,
    Failure,
    ImageRecord,
    ResizedRecord,
    write_records,
)
from pipeline.models.places import CacheFolders, cache_folders
from pipeline.progress import Bar, Progress, Silent
from pipeline.stages import stage

SIZES = ((16, 16), (24, 8), (8, 24))
"""(width, height) in pixels of the buckets in use."""


def _module(name: str) -> Any:
    path = Path(__file__).parent.parent / "models" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"models_{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_models = _module("conftest")
tiny, tiny_xl = _models.tiny, _models.tiny_xl


@dataclass
class Told(Silent):
    """Progress that remembers what was said, and bars: (what, total, done before, added)."""

    lines: list[str] = field(default_factory=list)
    bars: list[tuple[str, int, int, list[int]]] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.lines.append(text)

    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Bar:
        counts: list[int] = []
        self.bars.append((what, total, done, counts))
        silent = super().bar(what, total, unit, done)

        def advance(count: int = 1) -> None:
            counts.append(count)

        silent.advance = advance  # type: ignore[method-assign]
        return silent


@dataclass(frozen=True)
class Prepared:
    """A job whose pictures are downloaded, captioned and resized."""

    job: Job
    pixels: dict[str, np.ndarray]
    captions: dict[str, str]
    buckets: dict[str, tuple[int, int]]

    @property
    def folders(self) -> CacheFolders:
        return cache_folders(self.job, self.job.datasets[0][1])

    @property
    def root(self) -> Path:
        return self.job.dataset_folder(self.job.datasets[0][1]).root


def prepare(
    root: Path, base: Any, count: int = 7, *, uncaptioned: int = 0, unresized: int = 0, **cache: Any
) -> Prepared:
    """Writes recipes and what the earlier stages leave, for `count` pictures in three buckets."""
    root.mkdir(parents=True, exist_ok=True)
    pictures_root = root / "pictures"
    pictures_root.mkdir(exist_ok=True)
    (root / "set.toml").write_text(f'name = "set"\n[folder]\npath = "{pictures_root}"\n')
    settings = {"batch_size": 2, "shard_megabytes": 0.002, **cache}
    lines = [f"{key} = {value}" for key, value in settings.items()]
    config = f'config = "{base.config}"' if base.config else ""
    (root / "build.toml").write_text(
        f'name = "build"\n[base]\ncheckpoint = "{base.checkpoint}"\n{config}\n'
        '[dataset]\nrecipe = "set.toml"\n'
        "[resize]\nresolution = 16\nstep = 8\nmin_side = 8\nmax_side = 24\n"
        "[cache]\n" + "\n".join(lines) + "\n"
    )
    job = load_job(root / "build.toml", root / "workspace")
    dataset = job.datasets[0][1]
    folder = job.dataset_folder(dataset)

    rng = np.random.default_rng(5)
    pixels, encoded, buckets = {}, {}, {}
    for index in range(count):
        width, height = SIZES[index % len(SIZES)]
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "WEBP", lossless=True)
        md5 = hashlib.md5(file.getvalue()).hexdigest()
        pixels[md5], encoded[md5], buckets[md5] = picture, file.getvalue(), (width, height)
    md5s = sorted(pixels)
    captions = {md5: f"two red circle, {i}" for i, md5 in enumerate(md5s[uncaptioned:])}

    images = [
        ImageRecord(
            md5=md5, path=f"{md5}.webp", width=16, height=16, tags={}, score=None,
            rating="general", source=md5,
        )
        for md5 in md5s
    ]  # fmt: skip
    write_records(folder.images / chain.IMAGES_FILE, images)
    receipt = write_receipt(
        folder.images, "download", chain.download_fingerprint(dataset), inputs={},
        outputs=[folder.images / chain.IMAGES_FILE],
        summary={"pictures": fingerprint(md5s=md5s)},
    )  # fmt: skip

    of_captions = chain.caption_fingerprint(dataset, receipt, job.workspace.identities)
    place = folder.captions(of_captions)
    rows = [CaptionRecord(md5=md5, caption=text, score=None) for md5, text in captions.items()]
    write_records(place / chain.CAPTIONS_FILE, rows)
    write_receipt(place, "caption", of_captions, inputs={}, outputs=[place / chain.CAPTIONS_FILE])

    of_resized = chain.resize_fingerprint(job.recipe.resize, receipt)
    place = folder.resized(of_resized)
    (place / "shards" / "00000").mkdir(parents=True)
    kept = md5s[: len(md5s) - unresized]
    index = []
    for md5 in kept:
        file_name = f"shards/00000/{md5}.webp"
        (place / file_name).write_bytes(encoded[md5])
        width, height = buckets[md5]
        index.append(
            ResizedRecord(
                md5=md5, file=file_name, width=width, height=height, original_width=width,
                original_height=height, scaled_width=width, scaled_height=height, crop_left=0,
                crop_top=0,
            )
        )  # fmt: skip
    write_records(place / chain.INDEX_FILE, index)
    write_records(
        place / chain.FAILURES_FILE, [Failure(md5=m, reason="x") for m in md5s[len(kept) :]]
    )
    write_receipt(place, "resize", of_resized, inputs={}, outputs=[place / chain.INDEX_FILE])
    return Prepared(job, pixels, captions, buckets)


def chained(root: Path, base: Any, originals: Path, resize: str, cache: str = "") -> Job:
    """A job over a folder of pictures, of which no stage has run. `resize`, `cache`: TOML."""
    root.mkdir(exist_ok=True)
    (root / "set.toml").write_text(f'name = "set"\n[folder]\npath = "{originals}"\n')
    (root / "build.toml").write_text(
        f'name = "build"\n[base]\ncheckpoint = "{base.checkpoint}"\nconfig = "{base.config}"\n'
        f'[dataset]\nrecipe = "set.toml"\n[resize]\n{resize}'
        f"[cache]\nbatch_size = 2\nshard_megabytes = 0.02\n{cache}"
    )
    return load_job(root / "build.toml", root / "workspace")


def run_by_name(job: Job, progress: Progress, *names: str) -> None:
    """These stages of `job`, all of the data if none is named."""
    for name in names or ("download", "caption", "resize", "cache"):
        stage(name).run(job, progress)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def make_prepared() -> Any:
    return prepare


@pytest.fixture
def make_chained() -> Any:
    return chained


@pytest.fixture
def run_stages() -> Any:
    return run_by_name
