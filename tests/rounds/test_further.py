"""Further datasets in a build: shown in batches of their own, weighed, never judged by."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo.drawings import draw, lacquer_scene
from pipeline.artefacts.chain import IMAGES_FILE
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.records import ImageRecord, read_records
from pipeline.errors import RecipeError
from pipeline.progress import Silent
from pipeline.rounds.pictures import pictures
from pipeline.rounds.training import training
from pipeline.stages import DATA_STAGES
from pipeline.train.feed import Feed
from pipeline.train.run import Run

FURTHER = """[dataset]
recipe = "drawings.toml"
repeats = 2

[[datasets]]
recipe = "kept.toml"
repeats = 3
weight = 0.5
regularisation = true
"""


@pytest.fixture
def two(workshop: Path, fresh_job: Callable[..., Job]) -> Job:
    """A build over the drawings, and beside them a dataset of the same and six others, cached."""
    rng = np.random.default_rng(9)
    (workshop / "kept").mkdir(exist_ok=True)
    for number in range(6):
        scene = lacquer_scene(rng)
        draw(scene, 48, 48).save(workshop / "kept" / f"{number}.png")
        (workshop / "kept" / f"{number}.txt").write_text(", ".join(scene.general_tags()))
    for picture in (workshop / "pictures").iterdir():
        shutil.copy(picture, workshop / "kept" / f"too-{picture.name}")
    for picture in (workshop / "pictures").glob("*.png"):
        with Image.open(picture) as image:
            twin = image.convert("RGB")
        red, *others = twin.getpixel((0, 0))
        twin.putpixel((0, 0), (red ^ 1, *others))
        twin.save(workshop / "kept" / f"twin-{picture.stem}.png")
        shutil.copy(picture.with_suffix(".txt"), workshop / "kept" / f"twin-{picture.stem}.txt")
    (workshop / "kept.toml").write_text('name = "kept"\n[folder]\npath = "kept"\n')
    job = fresh_job(('[dataset]\nrecipe = "drawings.toml"\n', FURTHER))
    for stage in DATA_STAGES:
        stage.run(job, Silent())
    return load_job(job.recipe_path, job.workspace.root)


def test_a_round_is_shown_all_and_judged_by_its_own(two: Job) -> None:
    plan = training(two, two.recipe.law()[0], (), None, 1)
    own, other = plan.sources
    assert (own.repeats, own.weight, other.repeats, other.weight) == (2, 1.0, 3, 0.5)
    # What the round is judged by is left out of the other dataset too, and so is its twin there.
    split = pictures(two, two.recipe.law()[0]).split
    names = {
        record.md5: Path(record.path).name
        for record in read_records(two.workspace.dataset("kept").images / IMAGES_FILE, ImageRecord)
    }
    judged = {names[md5].removeprefix("too-") for md5 in split.md5s}
    shown = {names[md5] for md5 in other.pictures}
    trained = {names[md5].removeprefix("too-") for md5 in own.pictures}
    assert len(judged) == 7 and not judged & trained
    for picture in judged:
        assert not {f"too-{picture}", f"twin-{picture}"} & shown
    for picture in trained:
        assert {f"too-{picture}", f"twin-{picture}"} <= shown
    feed = Feed(two.recipe, plan, 1000)
    batches = [feed.at(step) for step in range(feed.steps_per_epoch)]
    weights = torch.cat([batch.weights for batch in batches])
    assert int((weights == 0.5).sum()) == 3 * len(other.pictures)
    assert int((weights == 1.0).sum()) == 2 * len(own.pictures)
    again = feed.at(3)
    assert again.noise.equal(batches[3].noise) and again.told.hidden.equal(batches[3].told.hidden)


def test_what_is_shown_beside_is_of_the_fingerprint(two: Job) -> None:
    law = two.recipe.law()[0]
    prints = {training(two, law, (), None, 1).fingerprint}
    for old, new in (("weight = 0.5", "weight = 0.6"), ("repeats = 3", "repeats = 4")):
        path = two.recipe_path.with_name(f"other-{two.recipe_path.name}")
        path.write_text(two.recipe_path.read_text().replace(old, new))
        job = load_job(path, two.workspace.root)
        prints.add(training(job, job.recipe.law()[0], (), None, 1).fingerprint)
    assert len(prints) == 3


def test_a_weight_scales_the_loss(two: Job) -> None:
    plan = training(two, two.recipe.law()[0], (), None, 1)
    run = Run(two.recipe, plan)
    feed = Feed(two.recipe, plan, 1000)
    batch = next(b for b in map(feed.at, range(feed.steps_per_epoch)) if b.weights[0] == 0.5)
    full = type(batch)(**{**vars(batch), "weights": torch.ones_like(batch.weights)})
    with torch.no_grad():
        torch.testing.assert_close(run.sample_losses(batch), 0.5 * run.sample_losses(full))


def test_one_dataset_named_twice_is_refused(workshop: Path) -> None:
    recipe = workshop / "twice.toml"
    text = (workshop / "build.toml").read_text()
    recipe.write_text(text + '\n[[datasets]]\nrecipe = "drawings.toml"\n')
    with pytest.raises(RecipeError, match="names a dataset twice"):
        load_job(recipe, workshop / "workspace")
