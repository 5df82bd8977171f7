from pathlib import Path
from typing import Any

import pytest

from pipeline.artefacts import chain
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.receipts import write_receipt
from pipeline.errors import RequestError
from pipeline.models.places import cache_folders


def _job(tiny: Any, root: Path, resolution: int = 16, quality: str = "best quality") -> Job:
    (root / "pictures").mkdir(exist_ok=True)
    (root / "set.toml").write_text(
        f'name = "set"\n[folder]\npath = "pictures"\n[caption]\nquality = [[1, "{quality}"]]\n'
    )
    (root / "build.toml").write_text(
        f'name = "build"\n[base]\ncheckpoint = "{tiny.file}"\nconfig = "{tiny.folder}"\n'
        '[dataset]\nrecipe = "set.toml"\n'
        f"[resize]\nresolution = {resolution}\nstep = 8\nmin_side = 8\nmax_side = 32\n"
    )
    return load_job(root / "build.toml", root / "workspace")


def _downloaded(job: Job) -> None:
    dataset = job.datasets[0][1]
    folder = job.dataset_folder(dataset).images
    folder.mkdir(parents=True)
    (folder / chain.IMAGES_FILE).write_text("")
    write_receipt(
        folder,
        "download",
        chain.download_fingerprint(dataset),
        inputs={},
        outputs=[folder / chain.IMAGES_FILE],
        summary={"pictures": fingerprint(md5s=[])},
    )


def test_pictures_must_be_here(tiny: Any, tmp_path: Path) -> None:
    job = _job(tiny, tmp_path)
    with pytest.raises(RequestError, match="`urushi download "):
        cache_folders(job, job.datasets[0][1])


def test_ladder_moves_latents_and_caption_rule_moves_text(tiny: Any, tmp_path: Path) -> None:
    job = _job(tiny, tmp_path)
    _downloaded(job)
    first = cache_folders(job, job.datasets[0][1])
    assert first.latents.name == first.latents_fingerprint
    assert first.text.parent == first.latents.parent == tmp_path / "workspace/datasets/set/cache"

    job = _job(tiny, tmp_path, resolution=24)
    ladder = cache_folders(job, job.datasets[0][1])
    assert ladder.latents != first.latents and ladder.text == first.text

    job = _job(tiny, tmp_path, quality="masterpiece")
    rule = cache_folders(job, job.datasets[0][1])
    assert rule.latents == first.latents and rule.text != first.text
