"""Caching without kept pictures: originals straight into latents, through the whole chain."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.artefacts import chain
from pipeline.artefacts.job import Job
from pipeline.artefacts.receipts import Receipt, read_receipt
from pipeline.artefacts.records import Failure, ResizedRecord, read_records
from pipeline.cache.stage import run
from pipeline.models.places import CacheFolders, cache_folders
from pipeline.pictures.read import vips_engine
from pipeline.resize.stage import run as run_resize

RESIZE = "resolution = 64\nmore_resolutions = [48]\nstep = 16\nmin_side = 32\nmax_side = 128\n"
UNKEPT = f'{RESIZE}crop = "random"\nkeep = false\n'
KEPT = f'{RESIZE}crop = "random"\n'


@pytest.fixture
def originals(tmp_path: Path, picture: Any) -> Path:
    """Kinds that vips takes, kinds that it leaves to Pillow, shapes of every sort."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture(200, 150).save(folder / "wide.jpg", quality=92)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(180, 120, seed=1).save(folder / "turned.jpg", exif=turned)
    picture(130, 170, "RGBA", seed=2).save(folder / "clear.png")
    picture(100, 100, "P", seed=3).save(folder / "palette.png")
    picture(40, 40, seed=4).save(folder / "small.webp", lossless=True)
    picture(600, 90, "CMYK", seed=5).save(folder / "print.jpg")
    return folder


def _places(job: Job) -> CacheFolders:
    return cache_folders(job, job.datasets[0][1])


def _shards(job: Job) -> dict[str, bytes]:
    folder = _places(job).latents
    return {p.name: p.read_bytes() for p in folder.iterdir() if "receipt" not in p.name}


def _receipt(folder: Path) -> Receipt:
    receipt = read_receipt(folder)
    assert receipt is not None
    return receipt


def test_latents_are_those_of_pictures_stored_without_loss(
    tiny: Any, originals: Path, tmp_path: Path, told: Any, make_chained: Any, run_stages: Any
) -> None:
    looks = "mirror = true\nrecolour = 2\n"
    kept = make_chained(tmp_path / "kept", tiny.as_file, originals, KEPT, looks)
    unkept = make_chained(tmp_path / "unkept", tiny.as_file, originals, UNKEPT, looks)
    run_stages(kept, told)
    told.lines.clear()
    run_stages(unkept, told)

    made = _shards(unkept)
    # Both sides at both resolutions, each as it is, mirrored, and recoloured twice; the small one
    # and the strip lie in one bucket of both.
    assert len(made) > 4 and made == _shards(kept)
    assert _places(unkept).latents_fingerprint == _places(kept).latents_fingerprint
    assert _places(unkept).resized_fingerprint != _places(kept).resized_fingerprint

    resized = _places(unkept).resized
    assert not [p for p in resized.rglob("*") if p.suffix in (".webp", ".png", ".jpeg")]
    assert "  none is stored: `urushi cache` reads the originals" in told.lines
    receipt = _receipt(resized)
    assert (receipt.inputs["ladder"]["keep"], receipt.summary["kept"]) == (False, False)
    rows = read_records(resized / chain.INDEX_FILE, ResizedRecord)
    assert {Path(row.file).parent for row in rows} == {originals}
    counts = _receipt(_places(unkept).latents).summary
    engine = vips_engine()
    assert engine is not None
    assert counts[f"decoded_by_libvips {engine.version()}"] > 0 < counts["decoded_by_pillow"]
    assert not [name for name in _receipt(_places(kept).latents).summary if "decoded" in name]


def test_latents_stand_when_pictures_are_kept_no_longer(
    tiny: Any, originals: Path, tmp_path: Path, told: Any, make_chained: Any, run_stages: Any
) -> None:
    job = make_chained(tmp_path, tiny.as_file, originals, KEPT)
    run_stages(job, told)
    unkept = replace(
        job,
        build=job.recipe.model_copy(
            update={"resize": job.recipe.resize.model_copy(update={"keep": False})}
        ),
    )
    assert run(unkept, told).already
    assert not run_resize(unkept, told).already
    # Stored with loss they are other pictures.
    lossy = job.recipe.resize.model_copy(update={"format": "jpeg"})
    lossy_job = replace(job, build=job.recipe.model_copy(update={"resize": lossy}))
    assert _places(lossy_job).latents_fingerprint != _places(job).latents_fingerprint
    unkept_lossy = lossy.model_copy(update={"keep": False})
    last = replace(job, build=job.recipe.model_copy(update={"resize": unkept_lossy}))
    assert _places(last).latents_fingerprint == _places(job).latents_fingerprint


def test_originals_that_changed_since_are_failures(
    tiny: Any,
    originals: Path,
    tmp_path: Path,
    told: Any,
    picture: Any,
    make_chained: Any,
    run_stages: Any,
) -> None:
    job = make_chained(tmp_path, tiny.as_file, originals, UNKEPT)
    run_stages(job, told, "download", "caption", "resize")
    cut, gone, other = (originals / n for n in ("wide.jpg", "palette.png", "small.webp"))
    cut.write_bytes(cut.read_bytes()[:3000])
    gone.unlink()
    picture(44, 44).save(other, lossless=True)
    run_stages(job, told, "cache")
    failures = read_records(_places(job).latents / chain.FAILURES_FILE, Failure)
    reasons = sorted({failure.reason for failure in failures})
    assert len(reasons) == 3
    assert reasons[0].endswith("small.webp is 44x44, and was 40x40 when it was placed")
    assert reasons[1].startswith("damaged: ") and reasons[2] == "the file is gone"
    assert _receipt(_places(job).latents).summary["latents"] > 0
