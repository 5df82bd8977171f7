"""Stages run by hand before the ones that they need: each names what is missing, where, and the
command that makes it."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.artefacts.job import Job, load_job
from pipeline.errors import RequestError
from pipeline.models.places import cache_folders
from pipeline.models.shards import open_latents
from pipeline.progress import Silent
from pipeline.stages import stage
from urushi.approve import answer
from urushi.export import export_build
from urushi.fork import fork
from urushi.lora_chain import extract_chain
from urushi.lora_tools import Kept
from urushi.rebuild import rebuild_round
from urushi.report import rewrite_report
from urushi.reweigh import reweigh

JobMaker = Callable[..., Job]


@pytest.fixture
def job(workshop: Path, tmp_path: Path) -> Job:
    """A build whose stages have not run."""
    return _job(workshop, tmp_path, "build.toml", "")


def _job(workshop: Path, tmp_path: Path, name: str, change: str) -> Job:
    recipe = workshop / f"{tmp_path.name}-{name}"
    recipe.write_text(
        (workshop / "build.toml").read_text().replace("[train]\n", change or "[train]\n")
    )
    return load_job(recipe, tmp_path / "workspace")


def _refused(job: Job, verb: str, missing: str, where: str, needed: str) -> None:
    """Whether `verb` says that `missing` is not there, where, and to run `needed` first."""
    with pytest.raises(RequestError) as refusal:
        stage(verb).run(job, Silent())
    folder = re.escape(str(job.workspace.dataset("drawings").root / where))
    said = str(refusal.value)
    assert re.search(rf"^The {missing} yet: nothing in {folder}\S* is finished", said), said
    assert f"Run `urushi {needed} {job.recipe_path}` first." in said, said


def _make(job: Job, *verbs: str) -> None:
    for verb in verbs:
        stage(verb).run(job, Silent())


def test_each_stage_names_the_one_that_it_needs(job: Job) -> None:
    for verb in ("caption", "resize", "cache", "train"):
        _refused(job, verb, "pictures of drawings are not here", "images", "download")
    _make(job, "download")
    _refused(job, "cache", "pictures of drawings are not resized", "resized/", "resize")
    _refused(job, "train", "latents of drawings are not cached", "cache/", "cache")
    _make(job, "resize")
    _refused(job, "cache", "captions of drawings are not written", "captions/", "caption")
    _make(job, "caption")
    _refused(job, "train", "latents of drawings are not cached", "cache/", "cache")
    _make(job, "cache")
    (cache_folders(job, job.datasets[0][1]).text / "receipt.json").unlink()
    _refused(job, "train", "texts of drawings are not cached", "cache/", "cache")
    _make(job, "cache")
    summary = stage("train").run(job, Silent()).summary
    assert f"`urushi run {job.recipe_path}` merges it and goes on" in summary


def test_encoders_that_learn_want_captions_alone(workshop: Path, tmp_path: Path) -> None:
    text = (workshop / "build.toml").read_text()
    recipe = workshop / "text.toml"
    recipe.write_text(text.replace("[train]\n", "[train]\ntext_encoder_rate = 0.5\n"))
    job = load_job(recipe, tmp_path / "workspace")
    _make(job, "download", "resize", "cache")
    _refused(job, "train", "captions of drawings are not written", "captions/", "caption")
    _make(job, "caption", "train")


def test_what_is_done_with_a_build_wants_a_finished_round(job: Job, tmp_path: Path) -> None:
    workspace, out = job.workspace.root, tmp_path / "out.safetensors"
    kept = Kept(rank=None, energy=None, ratio=None, conv_rank=None)
    verbs = (
        lambda: rewrite_report("coats", workspace),
        lambda: rebuild_round("coats", 1, None, [], out, workspace),
        lambda: extract_chain("coats", out, kept, None, False, workspace),
        lambda: export_build("coats", out, "float16", None, False, workspace),
        lambda: reweigh("coats", workspace),
        lambda: fork("coats", 1, "others", workspace, tmp_path),
    )
    job.folder.root.mkdir(parents=True)
    for verb in verbs:
        with pytest.raises(RequestError, match=r"no round .* yet\. `urushi run`"):
            verb()
    with pytest.raises(RequestError, match="No round of coats waits"):
        answer("coats", "continue", None, 1.0, workspace)
    assert not out.exists()


def test_training_by_hand_leaves_the_recipe_and_heeds_the_origin(
    copied: Job, workshop: Path, tmp_path: Path
) -> None:
    copied.folder.recipe.unlink()
    assert stage("train").run(copied, Silent()).summary == "every round's LoRA is trained"
    assert copied.folder.recipe.exists()
    shutil.copyfile(workshop / "base.safetensors", tmp_path / "other.safetensors")
    with open(tmp_path / "other.safetensors", "r+b") as other:
        other.seek(-1, 2)
        other.write(b"\1")
    base = copied.recipe.base.model_copy(update={"checkpoint": tmp_path / "other.safetensors"})
    changed = copied.recipe.model_copy(update={"base": base})
    with pytest.raises(RequestError, match="is not the file that coats started from"):
        stage("train").run(
            Job(copied.recipe_path, copied.workspace, changed, copied.datasets), Silent()
        )


def test_latents_of_another_recipe_in_their_place_are_not_trained_on(
    fresh_job: JobMaker,
) -> None:
    job = fresh_job()
    mirrored = job.recipe.cache.model_copy(update={"mirror": True})
    other = replace(job, build=job.recipe.model_copy(update={"cache": mirrored}))
    _make(other, "cache")
    dataset = job.datasets[0][1]
    here, there = (cache_folders(each, dataset).latents for each in (job, other))
    shutil.rmtree(here)
    shutil.copytree(there, here)
    _refused(job, "train", "latents of drawings are not cached", "cache/", "cache")
    _make(job, "cache")
    assert len(open_latents(here)) == len(open_latents(there))
    shard = sorted(here.glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(RequestError, match=rf"{shard} is missing, or has another size .* again"):
        _make(job, "train")
    _make(job, "cache", "train")
    assert shard.read_bytes() == whole
