"""[cache].masks: what of a picture counts beside its latents, exactly where the latents lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.artefacts.chain import FAILURES_FILE, IMAGES_FILE
from pipeline.artefacts.job import load_job
from pipeline.artefacts.masks import masks_of
from pipeline.artefacts.receipts import read_receipt
from pipeline.artefacts.records import Failure, ImageRecord, read_records, write_records
from pipeline.artefacts.workspace import Workspace
from pipeline.cache.latents import of_latent
from pipeline.cache.reasons import reasons
from pipeline.errors import RequestError
from pipeline.models.places import cache_folders
from pipeline.models.shards import LatentStore, open_latents
from pipeline.recipe import DatasetRecipe
from pipeline.size import Size
from pipeline.stages import stage

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
    with pytest.raises(
        RequestError, match=r'holds no masks.*Set \[cache\].masks to "alpha" or "files"'
    ):
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


@pytest.fixture
def three(tmp_path: Path, picture: Any) -> Path:
    """a and b of one bucket and sub/c of another; a's mask is beside it, of half its size: black
    on the left, white, and grey 51 in its lower right quarter."""
    folder = tmp_path / "three"
    (folder / "sub").mkdir(parents=True)
    for seed, (name, size) in enumerate(
        {"a": (128, 128), "b": (96, 96), "sub/c": (160, 80)}.items()
    ):
        picture(*size, seed=seed).save(folder / f"{name}.webp", lossless=True)
    _mask(64, 64).save(folder / "a-masklabel.png")
    return folder


def _mask(width: int, height: int) -> Image.Image:
    grey = np.zeros((height, width), np.uint8)
    grey[:, width // 2 :] = 255
    grey[height // 2 :, width // 2 :] = 51
    return Image.fromarray(grey)


def _by_name(job: Any) -> dict[str, str]:
    """md5s by names of files."""
    folder = job.dataset_folder(job.datasets[0][1])
    images = read_records(folder.images / IMAGES_FILE, ImageRecord)
    return {image.source.partition(".")[0]: image.md5 for image in images}


FILES = 'mirror = true\nmasks = "files"\n'


@pytest.mark.parametrize("keep", ["", "keep = false\n"])
def test_a_mask_beside_its_picture_lies_where_the_picture_does(
    tiny: Any, three: Path, tmp_path: Path, told: Any, make_chained: Any, run_stages: Any, keep: str
) -> None:
    job = make_chained(tmp_path / "job", tiny.as_file, three, f"{RESIZE}{keep}", FILES)
    run_stages(job, told)
    store, md5s = _cached(job), _by_name(job)
    assert sorted(md5s) == ["a", "b", "c"]  # The mask is no picture.
    plain, mirrored = (store.mask(md5s["a"], variant) for variant in (0, 1))
    height, width = plain.shape
    left, upper, lower = (slice(None), slice(0, width // 2 - 2)), height // 2 - 2, height // 2 + 2
    assert bool((plain[left] == 0).all())
    assert bool((plain[:upper, width // 2 + 2 :] == 1).all())
    assert plain[lower:, width // 2 + 2 :].unique().tolist() == pytest.approx([51 / 255])
    assert torch.equal(mirrored, plain.flip(-1))
    assert bool((store.mask(md5s["b"]) == 1).all())
    assert "set: 4 of 6 latents are of pictures without a mask: their masks count all of them" in (
        told.lines
    )
    assert "4 without a mask" in stage("cache").run(job, told).summary


def test_a_mask_is_cropped_as_its_picture_is(
    tiny: Any, tmp_path: Path, told: Any, picture: Any, make_chained: Any, run_stages: Any
) -> None:
    """A strip twice as long as its bucket: its middle stays, of the mask as of the picture."""
    folder = tmp_path / "strips"
    folder.mkdir()
    picture(640, 64, seed=3).save(folder / "strip.png")
    grey = np.full((32, 320), 255, np.uint8)
    grey[:, :20] = grey[:, -20:] = 0
    Image.fromarray(grey).save(folder / "strip-masklabel.png")
    job = make_chained(tmp_path / "job", tiny.as_file, folder, RESIZE, 'masks = "files"\n')
    run_stages(job, told)
    (record,) = _cached(job).records
    assert record.crop_left > 40
    assert bool((_cached(job).mask(record.md5) == 1).all())


def test_masks_in_a_folder_bear_their_pictures_names(
    tiny: Any, three: Path, tmp_path: Path, told: Any, make_chained: Any, run_stages: Any
) -> None:
    """The folder may lie among the pictures; what is in it is no picture."""
    masks = three / "masks"
    (masks / "sub").mkdir(parents=True)
    (three / "a-masklabel.png").rename(masks / "a-masklabel.png")
    _mask(96, 96).convert("RGB").save(masks / "b.png")
    _mask(80, 40).save(masks / "sub" / "c.png")
    job = _with_folder(make_chained, tmp_path, tiny, three, masks)
    run_stages(job, told)
    md5s, store = _by_name(job), _cached(job)
    assert sorted(md5s) == ["a", "b", "c"]
    assert all(bool((store.mask(md5)[:, 0] == 0).all()) for md5 in md5s.values())
    assert not any("without a mask" in line for line in told.lines)


def _with_folder(make_chained: Any, tmp_path: Path, tiny: Any, three: Path, masks: Path) -> Any:
    make_chained(tmp_path / "job", tiny.as_file, three, RESIZE, FILES)
    recipe = tmp_path / "job" / "set.toml"
    recipe.write_text(f'name = "set"\nmasks.folder = "{masks}"\n[folder]\npath = "{three}"\n')
    return load_job(tmp_path / "job" / "build.toml", tmp_path / "job" / "workspace")


def test_a_changed_mask_makes_its_shard_anew_and_no_other(
    tiny: Any, three: Path, tmp_path: Path, told: Any, make_chained: Any, run_stages: Any
) -> None:
    job = make_chained(tmp_path / "job", tiny.as_file, three, RESIZE, FILES)
    run_stages(job, told)
    dataset, store, md5s = job.datasets[0][1], _cached(job), _by_name(job)
    before = cache_folders(job, dataset)
    first = _shards(before.latents)
    rows = {name: len(load_file(before.latents / name)["mean"]) for name in first}
    mine = {store.record(md5s["a"], variant).shard for variant in (0, 1)}
    assert store.record(md5s["c"]).shard not in mine
    # Written again, the same: nothing is stale.
    kept = (three / "a-masklabel.png").read_bytes()
    (three / "a-masklabel.png").write_bytes(kept)
    assert stage("cache").run(job, told).already
    Image.new("L", (64, 64), 255).save(three / "a-masklabel.png")
    assert list(reasons(job, dataset))[:2] == [
        f"latents: stale; unlike {before.latents.name}, the last ones,",
        "  masks: others than before",
    ]
    with pytest.raises(RequestError, match="are not finished"):
        _cached(job)
    told.bars.clear()
    run_stages(job, told, "cache")
    ((_, total, finished, _),) = told.bars
    assert (total, total - finished) == (6, sum(rows[name] for name in mine))
    after = _shards(cache_folders(job, dataset).latents)
    assert {name for name in first if first[name] != after[name]} == mine
    assert bool((_cached(job).mask(md5s["a"]) == 1).all())
    # What was made of the mask before stands, for a round that is still trained on it.
    assert _shards(before.latents) == first
    # A mask that comes later is a change too; and one that is put back makes nothing again.
    _mask(160, 80).save(three / "sub" / "c-masklabel.png")
    run_stages(job, told, "cache")
    assert bool((_cached(job).mask(md5s["c"])[:, 0] == 0).all())
    (three / "sub" / "c-masklabel.png").unlink()
    (three / "a-masklabel.png").write_bytes(kept)
    assert stage("cache").run(job, told).already
    assert cache_folders(job, dataset) == before


def _shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_mask_that_cannot_be_used_costs_its_picture_with_a_reason(
    tiny: Any, three: Path, tmp_path: Path, told: Any, make_chained: Any, run_stages: Any
) -> None:
    """One row, for all looks at it."""
    _mask(64, 50).save(three / "a-masklabel.png")
    (three / "b-masklabel.png").write_bytes(b"no picture")
    job = make_chained(tmp_path / "job", tiny.as_file, three, RESIZE, FILES)
    run_stages(job, told)
    md5s = _by_name(job)
    assert "set: 2 pictures failed: " in " ".join(told.lines)
    assert [record.md5 for record in _cached(job).records] == [md5s["c"]]
    failures = read_records(_cached(job).folder / FAILURES_FILE, Failure)
    assert len(failures) == 2
    reasons = {failure.md5: failure.reason for failure in failures}
    a, b = three / "a-masklabel.png", three / "b-masklabel.png"
    assert reasons[md5s["a"]] == (
        f"its mask {a}: 64x50, which is not the shape of its picture, 128x128"
    )
    assert reasons[md5s["b"]].startswith(f"its mask {b}: no picture of a known kind")


def test_folders_of_masks_that_are_wrong_are_named(
    tiny: Any, three: Path, tmp_path: Path, told: Any, make_chained: Any, run_stages: Any
) -> None:
    masks = tmp_path / "masks"
    job = _with_folder(make_chained, tmp_path, tiny, three, masks)
    with pytest.raises(RequestError, match=r"There is no folder .*masks \(\[masks\].folder of set"):
        run_stages(job, told)
    (masks / "elsewhere").mkdir(parents=True)
    _mask(64, 64).save(masks / "elsewhere" / "a.png")
    with pytest.raises(RequestError, match=r"has no mask of any picture of set; .*\.png would be"):
        run_stages(job, told, "cache")
    for name in ("a.png", "a-masklabel.png"):
        _mask(64, 64).save(masks / name)
    with pytest.raises(RequestError, match=r"a-masklabel.png and .*a.png are both masks of a.webp"):
        run_stages(job, told, "cache")
    job = _with_folder(make_chained, tmp_path, tiny, three, three)
    with pytest.raises(RequestError, match=r"is a picture of set and cannot be its own mask"):
        run_stages(job, told)


def test_masks_of_downloads_bear_md5s_or_numbers(tmp_path: Path) -> None:
    folder, masks = Workspace(tmp_path).dataset("set"), tmp_path / "masks"
    (masks / "ab").mkdir(parents=True)
    facts: dict[str, Any] = {"width": 8, "height": 8, "tags": {}, "score": None}
    md5s = [character * 32 for character in "abc"]
    records = [
        ImageRecord(
            md5=md5, path=f"{md5}.jpg", rating="general", source=f"danbooru:{number}", **facts
        )
        for number, md5 in enumerate(md5s, 7)
    ]
    write_records(folder.images / IMAGES_FILE, records)
    for name in (f"ab/{md5s[0]}.png", "8-masklabel.png", "80.png"):
        _mask(8, 8).save(masks / name)
    table = {"site": "danbooru", "tags": "x"}
    dataset = DatasetRecipe.model_validate(
        {"name": "set", "download": table, "masks": {"folder": str(masks)}}
    )
    found = masks_of(dataset, folder)
    assert {md5: Path(mask.path).name for md5, mask in found.items()} == {
        md5s[0]: f"{md5s[0]}.png",
        md5s[1]: "8-masklabel.png",
    }
