"""[cache].masks: a picture's transparency beside its latents, exactly where the latents lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.artefacts.receipts import read_receipt
from pipeline.cache.latents import of_latent
from pipeline.errors import RequestError
from pipeline.models.places import cache_folders
from pipeline.models.shards import LatentStore, open_latents
from pipeline.recipe import Size

RESIZE = "resolution = 64\nstep = 16\nmin_side = 32\nmax_side = 128\n"


@pytest.fixture
def originals(tmp_path: Path, picture: Any) -> Path:
    """One whose right half is clear, the same turned on its side by EXIF, and an opaque one."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    half = Image.fromarray(np.repeat([[255] * 64 + [0] * 64], 128, 0).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    for seed, name, exif in ((2, "clear.png", Image.Exif()), (3, "turned.png", turned)):
        clear = picture(128, 128, "RGB", seed=seed)
        clear.putalpha(half)
        clear.save(folder / name, exif=exif)
    picture(128, 128, seed=1).save(folder / "whole.png")
    return folder


def _cached(job: Any) -> LatentStore:
    return open_latents(cache_folders(job, job.datasets[0][1]).latents)


def test_masks_follow_turn_scale_crop_and_mirror(
    tiny: Any, originals: Path, tmp_path: Path, told: Any, make_chained: Any, run_stages: Any
) -> None:
    settings = 'mirror = true\nmasks = "alpha"\n'
    jobs = [
        make_chained(tmp_path / name, tiny.as_file, originals, f"{RESIZE}{keep}", settings)
        for name, keep in (("kept", ""), ("unkept", "keep = false\n"))
    ]
    for job in jobs:
        run_stages(job, told)
    assert "set: 2 of 6 latents are of pictures without transparency: their masks count all of " \
        "them" in told.lines  # fmt: skip
    store, other = map(_cached, jobs)
    sides = []
    for record in store.records:
        plain, mirrored = (store.mask(record.md5, variant) for variant in (0, 1))
        assert plain.shape == store.latent(record.md5).mean.shape[1:]
        assert torch.equal(plain, other.mask(record.md5))
        assert torch.equal(mirrored, plain.flip(-1))
        half = plain.shape[-1] // 2
        # Lanczos rings within two latent pixels of the edge.
        left, right = plain[:, : half - 2], plain[:, half + 2 :]
        top, bottom = plain[: half - 2], plain[half + 2 :]
        if bool((plain == 1).all()):
            sides.append("whole")
        elif bool((left == 1).all() and (right == 0).all()):
            sides.append("left")
        elif bool((top == 1).all() and (bottom == 0).all()):
            sides.append("top")
    # Turned by a quarter clockwise, what was left is above.
    assert sorted(sides) == ["left", "top", "whole"]


def test_without_masks_caches_stay_as_they_were(
    tiny: Any, originals: Path, tmp_path: Path, told: Any, make_chained: Any, run_stages: Any
) -> None:
    plain = make_chained(tmp_path / "job", tiny.as_file, originals, RESIZE)
    run_stages(plain, told)
    folders = cache_folders(plain, plain.datasets[0][1])
    receipt = read_receipt(folders.latents)
    assert receipt is not None
    assert receipt.inputs["[cache]"] == {"arithmetic": "float32", "mirror": False, "recolour": 0}
    md5 = _cached(plain).records[0].md5
    with pytest.raises(RequestError, match=r'holds no masks.*Set \[cache\].masks = "alpha"'):
        _cached(plain).mask(md5)
    masked = make_chained(tmp_path / "job", tiny.as_file, originals, RESIZE, 'masks = "alpha"\n')
    assert cache_folders(masked, masked.datasets[0][1]).latents != folders.latents


def test_a_latent_pixel_is_the_mean_of_its_pixels() -> None:
    """Of 2 x 2 pixels three opaque: 191.25 of 255."""
    mask = np.array([[255, 255, 0, 0], [255, 0, 0, 100]], dtype=np.uint8)
    assert of_latent(mask, 1, 2).tolist() == [[191, 25]]
    assert of_latent(None, 1, 2).tolist() == [[255, 255]]


def test_a_picture_cropped_off_its_clear_side_is_whole(
    tiny: Any, tmp_path: Path, told: Any, picture: Any, make_chained: Any, run_stages: Any
) -> None:
    """A strip's ends are cut off: what was clear there is in no mask."""
    folder = tmp_path / "strips"
    folder.mkdir()
    strip = picture(640, 64, "RGB", seed=3)
    alpha = np.full((64, 640), 255, np.uint8)
    alpha[:, :40] = alpha[:, -40:] = 0
    strip.putalpha(Image.fromarray(alpha))
    strip.save(folder / "strip.png")
    job = make_chained(tmp_path / "job", tiny.as_file, folder, RESIZE, 'masks = "alpha"\n')
    run_stages(job, told)
    (record,) = _cached(job).records
    assert Size(record.width, record.height).area < 640 * 64
    assert record.crop_left > 40
    assert bool((_cached(job).mask(record.md5) == 1).all())
