"""A small real build: drawings in a folder and a tiny random base, cached and ready to train."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from demo.drawings import draw, lacquer_scene
from pipeline.artefacts.job import Job, load_job
from pipeline.progress import Silent
from pipeline.rounds.stage import parts
from pipeline.stages import DATA_STAGES

PICTURES = 24
BUILD = """
name = "coats"
seed = 5

[base]
checkpoint = "base.safetensors"
config = "pipeline"

[dataset]
recipe = "drawings.toml"

[resize]
resolution = 32
step = 8
min_side = 16
max_side = 64

[lora]
rank = 4
conv_rank = 2

[train]
batch_size = 4
optimizer = "adamw"
scheduler = "constant_with_warmup"
save_every = 3

[rounds]
count = 3
learning_rate = 2e-3
decay = 0.5
steps = [8]
held_out = 0.3
held_out_timesteps = 2

[preview]
prompts = ["1figure, red circle"]
steps = 2
"""


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings, recipes, a base, and a workspace in which the data stages are done."""
    return _workshop(tmp_path_factory.mktemp("workshop"), "make_pipeline")


@pytest.fixture(scope="session")
def workshop_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a base of SDXL's shape."""
    return _workshop(tmp_path_factory.mktemp("workshop_xl"), "make_sdxl_pipeline")


def _workshop(root: Path, make: str) -> Path:
    rng = np.random.default_rng(4)
    (root / "pictures").mkdir()
    for number in range(PICTURES):
        scene = lacquer_scene(rng)
        size = ((48, 48), (64, 40))[number % 2]
        draw(scene, *size).save(root / "pictures" / f"{number:02d}.png")
        (root / "pictures" / f"{number:02d}.txt").write_text(", ".join(scene.general_tags()))
    (root / "drawings.toml").write_text('name = "drawings"\n[folder]\npath = "pictures"\n')
    (root / "build.toml").write_text(BUILD)
    source = Path(__file__).parent.parent / "models" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny_for_rounds", source)
    assert spec and spec.loader
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    pipeline = getattr(tiny, make)(root / "tokenizer")
    pipeline.save_pretrained(root / "pipeline")
    tensors = {k: v.half() for k, v in tiny.single_file_tensors(pipeline).items()}
    tiny.write_single_file(root / "base.safetensors", tensors)
    job = load_job(root / "build.toml", root / "workspace")
    for stage in DATA_STAGES:
        assert not stage.run(job, Silent()).already
        assert stage.run(job, Silent()).already
    return root


@pytest.fixture
def fresh_job(workshop: Path, tmp_path: Path) -> Callable[..., Job]:
    """Makes a job in a workspace of its own with the data stages done; takes (old, new) changes to
    the build recipe's text."""

    def make(*changes: tuple[str, str]) -> Job:
        text = BUILD
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        recipe = workshop / f"build-{tmp_path.name}.toml"
        recipe.write_text(text)
        shutil.copytree(workshop / "workspace", tmp_path / "workspace")
        return load_job(recipe, tmp_path / "workspace")

    return make


@pytest.fixture(scope="session")
def finished(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """One undisturbed build with every round merged."""
    root = tmp_path_factory.mktemp("finished")
    recipe = workshop / "finished.toml"
    text = (workshop / "build.toml").read_text()
    recipe.write_text(text.replace("[rounds]\n", '[rounds]\ngate = "always"\nstrength = 0.5\n'))
    shutil.copytree(workshop / "workspace", root / "workspace")
    job = load_job(recipe, root / "workspace")
    for part in parts(job):
        part.run(job, Silent())
    return job


@pytest.fixture
def copied(finished: Job, workshop: Path, tmp_path: Path) -> Job:
    """The finished build in a workspace of its own."""
    shutil.copytree(finished.workspace.root, tmp_path / "workspace")
    return load_job(workshop / "finished.toml", tmp_path / "workspace")
