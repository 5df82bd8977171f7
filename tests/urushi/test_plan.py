from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artefacts.chain import IMAGES_FILE, download_fingerprint
from pipeline.artefacts.files import write_bytes
from pipeline.artefacts.job import load_job
from pipeline.artefacts.receipts import write_receipt
from pipeline.artefacts.records import ImageRecord, write_records
from urushi.plan import Pictures, pictures, print_plan, steps

WriteRecipe = Callable[..., Path]
LAW = "[rounds]\ncount = 2\nepochs = [6, 4]\nstrength = [0.7, 0.9]\n[train]\nbatch_size = 5\n"


def test_steps_worked_by_hand(write_recipe: WriteRecipe) -> None:
    """44,417 pictures: 512 held out, 43,905 in batches of 5 are 8,781 steps an epoch."""
    job = load_job(write_recipe(LAW), Path())
    first, second = job.recipe.law()
    known = Pictures(44_417, True, None)
    assert steps(job.recipe, first, known) == "~52686"
    assert steps(job.recipe, second, known) == "~35124"
    assert steps(job.recipe, first, Pictures(44_417, False, None)) == "≤~52686"
    assert steps(job.recipe, first, Pictures(None, False, None)) == "?"
    fixed = load_job(write_recipe("[rounds]\nsteps = [60]\n"), Path()).recipe
    assert steps(fixed, fixed.law()[0], Pictures(None, False, None)) == "60"


def test_nothing_is_known_before_a_folder_is_looked_through(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_plan(write_recipe(LAW), tmp_path / "workspace")
    shown = capsys.readouterr().out
    assert "`urushi download` counts it" in shown
    assert "unknown" in shown
    assert not (tmp_path / "workspace").exists()


def test_a_booru_takes_its_limit_in_seconds_at_one_a_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "set.toml"
    path.write_text('name = "set"\n[download]\nsite = "danbooru"\ntags = "x"\nlimit = 50_000\n')
    print_plan(path, tmp_path / "workspace")
    line = "set: ≤50000 pictures; at 1 requests a second at least 14.0 h"
    assert f"{line}, and up to 8 min for artists' former names\n" in capsys.readouterr().out
    path.write_text(path.read_text().replace('"danbooru"', '"gelbooru"'))
    print_plan(path, tmp_path / "workspace")
    assert "14.0 h; more for the kinds of its tags\n" in capsys.readouterr().out


def test_what_is_downloaded_is_counted(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = load_job(write_recipe(LAW), tmp_path / "workspace")
    dataset = job.datasets[0][1]
    folder = job.dataset_folder(dataset)
    records = []
    for number in range(40):
        record = ImageRecord(
            md5=f"{number:032x}",
            path=f"originals/{number}.png",
            width=64,
            height=64,
            tags={},
            score=None,
            rating="general",
            source="x",
        )
        write_bytes(folder.root / record.path, bytes(1000))
        records.append(record)
    write_records(folder.images / IMAGES_FILE, records)
    write_receipt(
        folder.images,
        "download",
        download_fingerprint(dataset),
        inputs={},
        outputs=[folder.images / IMAGES_FILE],
    )
    assert pictures(job, dataset) == Pictures(40, True, 40_000)
    print_plan(job.recipe_path, job.workspace.root)
    shown = capsys.readouterr().out
    assert "pictures: 40 pictures, downloaded, 40 kB" in shown
    # 4 held out; 36 in batches of 5 are 8 steps an epoch.
    rows = [line.split() for line in shown.splitlines() if line.split()[1:2] == ["pictures"]]
    assert rows == [
        ["1", "pictures", "0.0001", "6", "~48", "0.7"],
        ["2", "pictures", "0.0001", "4", "~32", "0.9"],
    ]
    # Latents at f = 8: 40 x (768 / 8)² x 4 channels x mean and logvar x 2 bytes.
    assert "≤ 5.9 MB latents," in shown
    # Of every look at a picture, and with masks 17 bytes in place of 16.
    job.recipe_path.write_text(
        job.recipe_path.read_text() + '[cache]\nmasks = "alpha"\nmirror = true\nrecolour = 2\n'
    )
    print_plan(job.recipe_path, job.workspace.root)
    assert "≤ 25.1 MB latents with masks," in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tiny", "blue_archive"])
def test_the_recipes_that_ship_can_be_planned(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_plan(Path(__file__).parents[2] / "datasets" / name / "build.toml", tmp_path)
    assert "Rounds" in capsys.readouterr().out
