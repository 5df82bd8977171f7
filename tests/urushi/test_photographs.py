"""`urushi run` on real photographs and a base of another shape: nothing here is the demo's."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import skimage
from PIL import Image

from pipeline.artefacts.records import CaptionRecord, Failure, ResizedRecord, read_records

PHOTOGRAPHS = {
    # Large and small, PNG and JPEG, colour and grey.
    "astronaut.png": "astronaut, portrait, orange_suit",
    "brick.png": "brick, texture",
    "camera.png": "photographer, camera, greyscale",
    "chelsea.png": "cat, close-up",
    "clock_motion.png": "clock",
    "coffee.png": "coffee, cup, table",
    "coins.png": "coins, greyscale",
    "grass.png": "grass, texture",
    "gravel.png": "gravel, texture",
    "hubble_deep_field.jpg": "space, galaxy",
    "motorcycle_left.png": "motorcycle, workshop",
    "rocket.jpg": "rocket, launch_pad",
}
DATASET = """
name = "photographs"
[folder]
path = "photographs"
[caption]
drop_tags = ["greyscale"]
"""
BUILD = """
name = "other"
seed = 1
[base]
checkpoint = "other.safetensors"
config = "pipeline"
[dataset]
recipe = "photographs.toml"
[resize]
resolution = 64
step = 16
min_side = 32
max_side = 128
[lora]
rank = 4
alpha = 2
[train]
batch_size = 2
optimizer = "lion8bit"
[rounds]
count = 2
learning_rate = 1e-3
epochs = [1]
gate = "always"
held_out = 0.3
held_out_timesteps = 2
[preview]
prompts = ["a cat", "a rocket on its launch pad"]
steps = 2
"""


@pytest.mark.prefect
def test_photographs_and_a_random_base_go_through_all_stages(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    for name, tags in PHOTOGRAPHS.items():
        source = Path(skimage.__file__).parent / "data" / name
        shutil.copy(source, tmp_path / "photographs" / name)
        (tmp_path / "photographs" / name).with_suffix(".txt").write_text(tags)
    content = (tmp_path / "photographs" / "rocket.jpg").read_bytes()
    (tmp_path / "photographs" / "cut.jpg").write_bytes(content[: len(content) // 2])
    spec = importlib.util.spec_from_file_location(
        "tiny_for_photographs", Path(__file__).parent.parent / "models" / "tiny.py"
    )
    assert spec and spec.loader
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    pipeline = tiny.make_pipeline(tmp_path / "tokenizer", seed=9)
    pipeline.save_pretrained(tmp_path / "pipeline")
    tiny.write_single_file(tmp_path / "other.safetensors", tiny.single_file_tensors(pipeline))
    (tmp_path / "photographs.toml").write_text(DATASET)
    (tmp_path / "build.toml").write_text(BUILD)

    words = [str(Path(sys.executable).with_name("urushi")), "run", str(tmp_path / "build.toml")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment["URUSHI_WORKSPACE"] = str(tmp_path / "workspace")
    # The user's own scripts, in the folder that they stand in, hide no module from any process.
    own = tmp_path / "own"
    for script in ("random.py", "queue.py", "pipeline.py", "flows/__init__.py"):
        (own / script).parent.mkdir(parents=True, exist_ok=True)
        (own / script).write_text("raise SystemExit('not this one')\n")
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=own)
    assert ended.returncode == 0, ended.stderr

    dataset = tmp_path / "workspace" / "datasets" / "photographs"
    (failure,) = read_records(dataset / "images" / "failures.jsonl", Failure)
    assert "cut.jpg" in failure.reason or "truncated" in failure.reason.lower()
    (captions,) = dataset.glob("captions/*/captions.jsonl")
    texts = {record.caption for record in read_records(captions, CaptionRecord)}
    assert len(texts) == 12
    assert "astronaut, portrait, orange suit" in texts and "coins" in texts
    (index,) = dataset.glob("resized/*/index.jsonl")
    for record in read_records(index, ResizedRecord):
        with Image.open(index.parent / record.file) as picture:
            assert picture.size == (record.width, record.height) and picture.mode == "RGB"
            assert record.width * record.height <= 64 * 64
    build = tmp_path / "workspace" / "builds" / "other"
    ledger = json.loads((build / "build.json").read_text())
    assert [row["decision"] for row in ledger["rounds"]] == ["always", "always"]
    assert ledger["prediction_type"] == "epsilon" and ledger["status"] == "finished"
    assert ledger["final_sha256"] == ledger["rounds"][1]["checkpoint_sha256"]
    with Image.open(build / "rounds" / "02" / "grid.png") as grid:
        # Three columns and two rows of 64 pixels, and their labels.
        assert grid.width > 3 * 64 and grid.height > 2 * 64
    report = build / "report.html"
    content = report.read_bytes()
    report.unlink()
    again = subprocess.run([words[0], "report", "other"], env=environment, capture_output=True)
    assert again.returncode == 0, again.stderr
    assert report.read_bytes() == content
