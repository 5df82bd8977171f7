"""Originals of every kind of badness, through resizing and caching, with and without kept pictures;
and a disk that fills up under both."""

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.artefacts import chain
from pipeline.artefacts.job import Job
from pipeline.artefacts.records import Failure, ImageRecord, LatentRecord, read_records
from pipeline.errors import DiskFullError
from pipeline.models.places import CacheFolders, cache_folders

RESIZE = "resolution = 64\nstep = 16\nmin_side = 32\nmax_side = 128\n"


def _bomb(path: Path) -> None:
    """A PNG of a few bytes that says it is 60,000 pixels a side."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(bytes(100)), b"IEND")
    framed = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


def _folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def _another_kind(path: Path) -> None:
    with Image.open(path) as image:
        image.save(path.with_suffix(".png"))
    path.with_suffix(".png").rename(path)


def _of(width: int, height: int) -> Callable[[Path], None]:
    return lambda path: Image.new("RGB", (width, height), "teal").save(path, "PNG")


CASES: tuple[tuple[str, Callable[[Path], None], str], ...] = (
    ("unreadable", _folder_instead, "the file cannot be read: Is a directory"),
    ("zero bytes", lambda path: path.write_bytes(b"") and None, "the file is empty"),
    ("a page", lambda path: path.write_text("<html>") and None, "no picture of a known kind"),
    ("cut off", _cut_off, "damaged: "),
    ("bomb", _bomb, "more than 134,217,728 pixels"),
    ("vanished", Path.unlink, "the file is gone"),
    ("wrong extension", _another_kind, ""),
    ("one pixel", _of(1, 1), ""),
    ("strip", _of(30_000, 40), ""),
    ("sound", lambda path: None, ""),
)
"""(name, what happens to a JPEG between listing and reading, the reason; "" where it is taken)."""


def _places(job: Job) -> CacheFolders:
    return cache_folders(job, job.datasets[0][1])


@pytest.mark.parametrize("keep", ["true", "false"])
def test_each_bad_picture_is_a_row_with_its_reason_and_no_other_suffers(
    keep: str,
    tiny: Any,
    tmp_path: Path,
    told: Any,
    picture: Any,
    make_chained: Any,
    run_stages: Any,
) -> None:
    originals = tmp_path / "pictures"
    originals.mkdir()
    for number, (name, _, _) in enumerate(CASES):
        picture(120 + 3 * number, 100, seed=number).save(originals / f"{name}.jpg", quality=90)
    job = make_chained(tmp_path, tiny.as_file, originals, f"{RESIZE}keep = {keep}\n")
    run_stages(job, told, "download", "caption")
    images = job.dataset_folder(job.datasets[0][1]).images / chain.IMAGES_FILE
    names = {image.md5: Path(image.path).stem for image in read_records(images, ImageRecord)}
    assert sorted(names.values()) == sorted(name for name, _, _ in CASES)
    for name, happens, _ in CASES:
        happens(originals / f"{name}.jpg")
    run_stages(job, told, "resize", "cache")

    failures = {
        names[failure.md5]: failure.reason
        for folder in (_places(job).resized, _places(job).latents)
        for failure in read_records(folder / chain.FAILURES_FILE, Failure)
    }
    cached = {
        names[row.md5] for row in read_records(_places(job).latents / "index.jsonl", LatentRecord)
    }
    assert cached == {name for name, _, reason in CASES if not reason}
    assert set(failures) == {name for name, _, reason in CASES if reason}
    for name, _, reason in CASES:
        if reason:
            assert failures[name].startswith(reason), name


def test_a_disk_that_fills_up_loses_nothing(
    tiny: Any,
    tmp_path: Path,
    told: Any,
    picture: Any,
    small_disk: Any,
    make_chained: Any,
    run_stages: Any,
) -> None:
    originals = tmp_path / "pictures"
    originals.mkdir()
    for number in range(12):
        picture(100, 80, seed=number).save(originals / f"{number}.png")
    whole = make_chained(tmp_path / "whole", tiny.as_file, originals, RESIZE)
    run_stages(whole, told)
    root = small_disk(64 * 1024)
    job = make_chained(root, tiny.as_file, originals, RESIZE)
    run_stages(job, told, "download", "caption")
    for stage in ("resize", "cache"):
        used = shutil.disk_usage(root).used // 1024
        small_disk(used + 24)
        with pytest.raises(DiskFullError) as error:
            run_stages(job, told, stage)
        assert error.value.exit_code == 3
        small_disk(64 * 1024)
        run_stages(job, told, stage)
    for kind in ("resized", "latents", "text"):
        assert _bytes(getattr(_places(job), kind)) == _bytes(getattr(_places(whole), kind))


def _bytes(folder: Path) -> dict[str, bytes]:
    """Every file but receipts, which state times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "receipt" not in path.name
    }
