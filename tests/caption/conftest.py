"""A dataset whose pictures have been downloaded, as far as the caption stage can tell."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.artefacts.chain import download_fingerprint
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.receipts import write_receipt
from pipeline.artefacts.records import ImageRecord, write_records
from pipeline.progress import Silent

BOORU = """
name = "set"
[download]
site = "danbooru"
tags = "blue_archive"
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
def image() -> Callable[..., ImageRecord]:
    """image(number, score=…, general=(…), artist=(…)): a record with these tags by category."""

    def make(
        number: int = 1, score: int | None = 10, rating: str = "general", **tags: Sequence[str]
    ) -> ImageRecord:
        return ImageRecord(
            md5=f"{number:032x}",
            path=f"originals/{number}.png",
            width=64,
            height=64,
            tags={category: tuple(names) for category, names in tags.items()},
            score=score,
            rating=rating,
            source=f"danbooru:{number}",
        )

    return make


@pytest.fixture
def downloaded(tmp_path: Path) -> Callable[..., Job]:
    """downloaded(images, recipe): the job of a dataset recipe whose images.jsonl holds `images`."""

    def make(images: Sequence[ImageRecord], recipe: str = BOORU) -> Job:
        path = tmp_path / "set.toml"
        path.write_text(recipe, encoding="utf-8")
        job = load_job(path, tmp_path / "workspace")
        dataset = job.datasets[0][1]
        folder = job.dataset_folder(dataset).images
        write_records(folder / "images.jsonl", images)
        write_records(folder / "failures.jsonl", [])
        write_receipt(
            folder,
            "download",
            download_fingerprint(dataset),
            inputs={},
            outputs=[folder / "images.jsonl", folder / "failures.jsonl"],
            summary={
                "images": len(images),
                "failures": 0,
                "pictures": fingerprint(md5s=sorted(image.md5 for image in images)),
            },
        )
        return job

    return make
