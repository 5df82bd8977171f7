from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.artefacts.chain import download_fingerprint
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.ledger import write_ledger
from pipeline.artefacts.receipts import read_receipt, write_receipt
from pipeline.errors import RequestError
from pipeline.preview import stage
from pipeline.preview.counts import data_counts, describe
from pipeline.progress import Silent

RECIPE = """
name = "coat"
[base]
checkpoint = "{checkpoint}"
config = "{config}"
[dataset]
recipe = "pictures.toml"
[resize]
resolution = 20
step = 8
min_side = 8
[preview]
prompts = ["red circle", "blue square"]
steps = {steps}
enlarge = 3
"""


def make_job(root: Path, model: Any, steps: int = 1) -> Job:
    (root / "pictures.toml").write_text('name = "pictures"\n[folder]\npath = "pictures"\n')
    recipe = root / "coat.toml"
    base = model.base
    recipe.write_text(RECIPE.format(checkpoint=base.checkpoint, config=base.config, steps=steps))
    return load_job(recipe, root / "workspace")


@pytest.fixture
def job(tmp_path: Path, model: Any) -> Job:
    return make_job(tmp_path, model)


def columns(grid: Path) -> int:
    """How many pictures of 48 pixels stand side by side: the layout's width minus its frame.

    Letters of 13 pixels: two edges of 26, labels of 169, gaps of 8. "before training" is wider
    than a picture, and so decides how wide a column is.
    """
    with Image.open(grid) as opened:
        width = opened.width
    pitch = int(stage_title_width()) + 1 + 8
    count, rest = divmod(width - 2 * 26 - 169 - 2 * 8 + 8, pitch)
    assert rest == 0
    return count


def stage_title_width() -> float:
    from pipeline.preview.grid import typeface

    return typeface(13).getlength("before training")


def test_without_a_ledger_the_origin_alone(job: Job, said: Any) -> None:
    outcome = stage.run(job, said)
    assert not outcome.already
    assert columns(job.folder.round(0).grid) == 1
    assert not job.folder.report.exists()
    with Image.open(job.folder.round(0).samples / "00.png") as picture:
        assert picture.size == (16, 16)  # 20 pixels, down to a multiple of 8.
    assert stage.run(job, said).already
    assert len(said.bars) == 1


def test_rounds_grids_and_report_are_made_once_and_outlive_their_checkpoints(
    job: Job, model: Any, make: Any, said: Any
) -> None:
    rows = [make.row(1), make.row(2, strength=0, decision="rejected"), make.row(3)]
    for number, factor in ((1, -1.0), (3, 3.0)):
        job.folder.round(number).root.mkdir(parents=True)
        model.changed(job.folder.round(number).checkpoint, factor)
    write_ledger(job.folder.ledger, make.ledger(*rows))
    assert not stage.run(job, said).already
    assert [columns(job.folder.round(n).grid) for n in (1, 2, 3)] == [2, 3, 3]
    # The round that was left out needs no samples of its own.
    assert [what for what, _, _ in said.bars] == [
        "samples of the origin",
        "samples of round 1",
        "samples of round 3",
    ]
    assert job.folder.report.is_file()
    assert stage.run(job, said).already
    before = job.folder.round(3).grid.read_bytes()
    for number in (1, 3):
        job.folder.round(number).checkpoint.unlink()
    job.folder.round(3).grid.unlink()
    outcome = stage.run(job, said)
    assert not outcome.already
    assert job.folder.round(3).grid.read_bytes() == before
    assert said.lines == []


def test_one_rounds_grid_right_after_its_merge(job: Job, model: Any, make: Any) -> None:
    rows = []
    for number in (1, 2):
        rows.append(make.row(number))
        job.folder.round(number).root.mkdir(parents=True)
        model.changed(job.folder.round(number).checkpoint, -number)
        grid = stage.make_round_grid(job, rows, number, Silent())
        assert grid == job.folder.round(number).grid
        assert columns(grid) == number + 1
        seen = read_receipt(job.folder.round(number).root, stage.GRID_RECEIPT)
        assert seen and seen.inputs["columns"][-1] == f"round {number}"
        job.folder.round(number).checkpoint.unlink()  # As keep = "last" does.
    first = job.folder.round(1).grid.stat().st_mtime_ns
    assert stage.make_round_grid(job, rows, 1, Silent()) == job.folder.round(1).grid
    assert job.folder.round(1).grid.stat().st_mtime_ns == first


def test_a_round_that_can_no_longer_be_drawn_is_told_and_left_out(
    job: Job, model: Any, make: Any, said: Any, tmp_path: Path
) -> None:
    rows = [make.row(1), make.row(2)]
    job.folder.round(2).root.mkdir(parents=True)
    model.changed(job.folder.round(2).checkpoint, 2.0)
    assert stage.make_round_grid(job, rows, 1, said) is None
    grid = stage.make_round_grid(job, rows, 2, said)
    assert grid and columns(grid) == 2
    assert "samples of round 1: not drawn" in said.lines[0]
    # Other settings are other pictures: drawn again.
    drawn = len(said.bars)
    stage.make_round_grid(make_job(tmp_path, model, steps=2), rows, 2, said)
    assert len(said.bars) == drawn + 2


def test_a_missing_base_is_told_before_anything_is_written(job: Job, tmp_path: Path) -> None:
    recipe = tmp_path / "coat.toml"
    text = recipe.read_text().replace("base.safetensors", "elsewhere.safetensors")
    recipe.write_text(text)
    with pytest.raises(RequestError, match=r"elsewhere\.safetensors"):
        stage.run(load_job(recipe, tmp_path / "workspace"), Silent())
    assert not (tmp_path / "workspace").exists()


def test_counts_come_from_receipts(job: Job) -> None:
    assert data_counts(job) == ()
    (_, dataset) = job.datasets[0]
    images = job.dataset_folder(dataset).images
    images.mkdir(parents=True)
    (images / "images.jsonl").touch()
    write_receipt(
        images,
        "download",
        download_fingerprint(dataset),
        inputs={},
        outputs=[images / "images.jsonl"],
        summary={"images": 1383, "failures": 0, "pictures": "0f"},
        seconds=12.3,
    )
    (count,) = data_counts(job)
    assert (count.stage, count.dataset, count.seconds) == ("download", "pictures", 12.3)
    assert count.made == "1,383 images"
    assert describe({"a_b": 2, "flag": True, "share": 0.5, "c": 3}) == "2 a b, 3 c"
