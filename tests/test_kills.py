"""SIGKILL inside download, cache, train and merge, five times each, at random: the same bytes.

The job is the demo's at a smaller size: the embedded booru, the tiny base, two rounds. A child runs
it and says when each part begins and ends; the parent kills it somewhere in between.
"""

import hashlib
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.booru import BooruServer, running
from demo.corpus import generate
from urushi.recipes import tiny_base

KILLS = 5
STAGES = ("download", "cache", "train", "merge")
"""Where to kill. A part such as round-01-train counts as train."""

CHILD = """
import sys
from pathlib import Path
from flows.work import build_parts, data_parts
from pipeline.artefacts.job import load_job
from pipeline.progress import Silent

job = load_job(Path(sys.argv[1]), Path(sys.argv[2]))
for parts in (data_parts, build_parts):
    for part in parts(job):
        print("begin", part.name, flush=True)
        part.run(job, Silent())
        print("end", part.name, flush=True)
"""

DATASET = """
name = "maki_e"
[download]
site = "danbooru"
host = "{url}"
tags = "maki-e_box"
requests_per_second = 40.0
connections = 2
contact = "urushi tests"
"""

BUILD = """
name = "killed"
seed = 3
[base]
checkpoint = "{base}/tiny.safetensors"
config = "{base}/config"
[dataset]
recipe = "pictures.toml"
[resize]
resolution = 64
step = 16
min_side = 48
max_side = 96
[cache]
batch_size = 4
shard_megabytes = 0.05
[lora]
rank = 4
conv_rank = 4
[train]
batch_size = 4
optimizer = "adamw8bit"
save_every = 2
[rounds]
count = 2
learning_rate = 5e-3
decay = 0.7
steps = [12]
held_out = 0.2
held_out_timesteps = 2
gate = "always"
[preview]
prompts = ["1figure, red star, lacquer background"]
steps = 2
"""


@pytest.fixture
def booru() -> Iterator[BooruServer]:
    with running(corpus=generate(count=60)) as server:
        yield server


class Child:
    """The job in a process of its own."""

    def __init__(self, recipe: Path, workspace: Path) -> None:
        command = [sys.executable, "-c", CHILD, str(recipe), str(workspace)]
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self._said: queue.Queue[tuple[str, str] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                what, part = line.split()
                self._said.put((what, part))
        self._said.put(None)

    def said(self, seconds: float | None = None) -> tuple[str, str] | None:
        """The next ("begin" or "end", part), or None at the end; queue.Empty after `seconds`."""
        return self._said.get(timeout=seconds)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        self._reader.join()
        return self.process.wait()


def stage_of(part: str) -> str:
    return part.rpartition("-")[2]


def run_to_the_end(recipe: Path, workspace: Path) -> dict[str, float]:
    """Runs the job undisturbed; returns the longest seconds of each stage."""
    child, seconds, begun = Child(recipe, workspace), dict.fromkeys(STAGES, 0.0), 0.0
    while (said := child.said()) is not None:
        what, part = said
        if what == "begin":
            begun = time.monotonic()
        elif stage_of(part) in seconds:
            took = time.monotonic() - begun
            seconds[stage_of(part)] = max(seconds[stage_of(part)], took)
    assert child.wait() == 0
    return seconds


def killed_inside(stage: str, recipe: Path, workspace: Path, delay: float) -> bool:
    """Kills a child `delay` seconds after it began a part of `stage` that lasts so long.

    Returns whether there was one; parts that are done already end at once and are passed over.
    """
    child = Child(recipe, workspace)
    while (said := child.said()) is not None:
        if said[0] == "begin" and stage_of(said[1]) == stage:
            try:
                child.said(delay)
            except queue.Empty:
                child.kill()
                return True
    child.wait()
    return False


def digest(workspace: Path, name: str) -> str:
    return hashlib.sha256((workspace / "builds" / "killed" / name).read_bytes()).hexdigest()


@pytest.mark.drill
def test_killed_anywhere_it_ends_in_the_same_bytes(booru: BooruServer, tmp_path: Path) -> None:
    (tmp_path / "pictures.toml").write_text(DATASET.format(url=booru.url))
    recipe = tmp_path / "build.toml"
    recipe.write_text(BUILD.format(base=tiny_base()))
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    seconds = run_to_the_end(recipe, calm)
    chance = random.Random(11)
    inside = dict.fromkeys(STAGES, 0)
    for stage in STAGES:
        for _ in range(6 * KILLS):
            if inside[stage] == KILLS:
                break
            # Half of a stage's own time: later kills then still find it unfinished.
            delay = chance.uniform(0, 0.5 * seconds[stage])
            inside[stage] += killed_inside(stage, recipe, disturbed, delay)
    assert inside == dict.fromkeys(STAGES, KILLS)
    run_to_the_end(recipe, disturbed)
    for name in ("final.safetensors", "final.lora.safetensors"):
        assert digest(disturbed, name) == digest(calm, name)
    leftovers = [p for p in disturbed.rglob("*") if p.name.endswith(".part")]
    assert leftovers == []
