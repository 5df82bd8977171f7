"""Long drills: kills at any part of a build, and every round of a longer one rebuilt."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.artefacts.job import Job
from pipeline.artefacts.ledger import read_ledger
from pipeline.progress import Silent
from pipeline.rounds import stage
from pipeline.rounds.chain import sha256
from pipeline.rounds.rebuild import plan, rebuild

JobMaker = Callable[..., Job]
KILLS = 15
TIMES = {"seconds", "phases", "peak_memory"}
RUN = """
import sys
from pathlib import Path
from pipeline.artefacts.job import load_job
from pipeline.progress import Silent
from pipeline.rounds.stage import parts
print("ready", flush=True)
job = load_job(Path(sys.argv[1]), Path(sys.argv[2]))
for part in parts(job):
    part.run(job, Silent())
    print(part.name, flush=True)
"""


def without_times(value: Any) -> Any:
    """A ledger as JSON, less what is another one each time."""
    if isinstance(value, dict):
        return {key: without_times(v) for key, v in value.items() if key not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.mark.drill
def test_every_round_of_five_is_rebuilt_and_one_dropped_comes_back(
    fresh_job: JobMaker, tmp_path: Path
) -> None:
    job = fresh_job(
        ("count = 3", 'count = 5\ngate = "always"\nstrength = [0.9, 0.5, 1.0, 0.7]'), ("[8]", "[2]")
    )
    for part in stage.parts(job):
        part.run(job, Silent())
    ledger, identities = read_ledger(job.folder.ledger), job.workspace.identities
    out = tmp_path / "out.safetensors"
    for row in ledger.rounds:
        seen = sha256(job.folder.round(row.round).checkpoint)
        made = rebuild(plan(job.folder, ledger, identities, row.round), out)
        assert made.sha256 == row.checkpoint_sha256 == seen
    whole = made.sha256
    dropped = rebuild(plan(job.folder, ledger, identities, 5, None, (3,)), out)
    assert dropped.sha256 != whole
    strengths = [row.strength for row in ledger.rounds]
    again = rebuild(plan(job.folder, ledger, identities, 5, strengths), out)
    assert again.sha256 == whole == ledger.final_sha256


@pytest.mark.drill
def test_killed_at_any_part_it_ends_in_the_same_files_and_ledger(
    fresh_job: JobMaker, tmp_path: Path
) -> None:
    """Searched strengths and a refit: all that is decided must be decided alike."""
    job = fresh_job(("learning_rate = 2e-3", 'learning_rate = 1e-3\ngate = "always"'))
    recipe, calm, disturbed = job.recipe_path, job.workspace.root, tmp_path / "disturbed"
    shutil.copytree(calm, disturbed)
    began = time.monotonic()
    with _child(recipe, calm) as child:
        assert child.wait() == 0
    took, chance, kills = time.monotonic() - began, random.Random(7), 0
    for _ in range(3 * KILLS):
        if kills == KILLS:
            break
        child = _child(recipe, disturbed)
        assert child.stdout is not None
        child.stdout.readline()  # Not while it starts up.
        time.sleep(chance.uniform(0, took / 8))
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.communicate()
    _child(recipe, disturbed).communicate()
    ledgers = []
    for root in (calm, disturbed):
        folder = root / "builds" / "coats"
        ledgers.append(without_times(json.loads((folder / "build.json").read_text())))
    assert ledgers[0] == ledgers[1]
    for name in ("final.safetensors", "final.lora.safetensors"):
        first, second = (root / "builds" / "coats" / name for root in (calm, disturbed))
        assert hashlib.sha256(first.read_bytes()).digest() == (
            hashlib.sha256(second.read_bytes()).digest()
        )
    assert kills >= KILLS // 2


def _child(recipe: Path, workspace: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", RUN, str(recipe), str(workspace)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root)
