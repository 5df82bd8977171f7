"""Datasets that have been downloaded as far as resizing can tell."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.artefacts.chain import download_fingerprint
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.receipts import write_receipt
from pipeline.artefacts.records import ImageRecord, write_records
from pipeline.progress import Silent

DATASET = """
name = "set"
[download]
site = "danbooru"
tags = "blue_archive"
"""
BUILD = """
name = "build"
[base]
checkpoint = "base.safetensors"
[dataset]
recipe = "set.toml"
[resize]
resolution = 64
step = 16
min_side = 32
max_side = 128
"""


class Heard(Silent):
    """Progress that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def downloaded(tmp_path: Path) -> Callable[..., Job]:
    """downloaded([bytes or path, …], build=…, sized=True): the job of a build over those."""

    def make(
        originals: Sequence[bytes | Path],
        build: str = BUILD,
        sized: bool = True,
        folder: Path | None = None,
    ) -> Job:
        root = folder or tmp_path
        root.mkdir(parents=True, exist_ok=True)
        (root / "set.toml").write_text(DATASET, encoding="utf-8")
        (root / "build.toml").write_text(build, encoding="utf-8")
        job = load_job(root / "build.toml", root / "workspace")
        dataset = job.datasets[0][1]
        home = job.dataset_folder(dataset)
        records = []
        for number, original in enumerate(originals):
            if isinstance(original, Path):
                md5, path = hashlib.md5(original.read_bytes()).hexdigest(), str(original)
            else:
                md5 = hashlib.md5(original + str(number).encode()).hexdigest()
                place = home.original(md5, "img")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(original)
                path = str(place.relative_to(home.root))
            records.append(
                ImageRecord(
                    md5=md5,
                    path=path,
                    width=100 if sized else 0,
                    height=100 if sized else 0,
                    tags={"general": ("1girl",), "artist": ()},
                    score=20,
                    rating="general",
                    source=f"danbooru:{number}",
                )
            )
        records.sort(key=lambda record: record.md5)
        write_records(home.images / "images.jsonl", records)
        write_records(home.images / "failures.jsonl", [])
        write_receipt(
            home.images,
            "download",
            download_fingerprint(dataset),
            inputs={},
            outputs=[home.images / "images.jsonl", home.images / "failures.jsonl"],
            summary={
                "images": len(records),
                "failures": 0,
                "pictures": fingerprint(md5s=[record.md5 for record in records]),
            },
        )
        return job

    return make
