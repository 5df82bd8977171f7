"""Both stages killed twenty times at random: what lies there in the end is as if nothing had been.

Forks of one process that has the libraries loaded, so that kills fall into the work and not into
imports. A fork says through a pipe how far it is, and is killed within a few milliseconds of some
picture or caption.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.artefacts.job import Job
from pipeline.models.places import cache_folders

KILLS = 20
PROGRAM = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from pipeline.artefacts.job import load_job
from pipeline.cache import latents, stage as caching, texts
from pipeline.models import load
from pipeline.pictures import read, vips
from pipeline.progress import Silent
from pipeline.resize import shards, stage as resizing
resizing.SHARD = shards.SHARD = 4
job = load_job(Path(sys.argv[1]), Path(sys.argv[2]))
kills, rng = int(sys.argv[3]), random.Random(int(sys.argv[4]))

class Piped(Silent):
    def __init__(self, end):
        self.end = end
    def bar(self, what, total, unit, done=0):
        bar = super().bar(what, total, unit, done)
        bar.advance = lambda count=1: os.write(self.end, b"." * count) and None
        return bar

killed = 0
while True:
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        resizing.run(job, Piped(theirs))
        caching.run(job, Piped(theirs))
        os._exit(0)
    os.close(theirs)
    if killed < kills:
        for _ in range(rng.randrange(16)):
            if not os.read(ours, 1):
                break
        time.sleep(rng.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(ours)
    if not os.WIFSIGNALED(status):
        break
    killed += 1
print(killed, status)
"""


def _killed(job: Job, kills: int) -> None:
    """Runs both stages to the end in forks, `kills` of them killed."""
    arguments = (str(job.recipe_path), str(job.workspace.root), str(kills))
    seed = os.environ.get("DRILL_SEED", "1")
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments, seed], capture_output=True, text=True
    )
    assert shown.stdout.split() == [str(kills), "0"], shown.stderr


def _left(job: Job) -> dict[str, Any]:
    """Every file of both stages: its bytes, of receipts all but the times that they state."""
    places = cache_folders(job, job.datasets[0][1])
    found: dict[str, Any] = {}
    for folder in (places.resized, places.latents, places.text):
        for path in sorted(folder.rglob("*")):
            name = f"{folder.name}/{path.relative_to(folder)}"
            if path.name.endswith("receipt.json"):
                receipt = json.loads(path.read_text())
                found[name] = {k: v for k, v in receipt.items() if k not in TIMES}
            elif path.is_file():
                found[name] = path.read_bytes()
    return found


TIMES = ("seconds", "finished_at")


@pytest.mark.drill
@pytest.mark.parametrize("keep", ["true", "false"])
def test_twenty_kills_leave_what_an_undisturbed_run_leaves(
    keep: str,
    tiny: Any,
    tmp_path: Path,
    told: Any,
    picture: Any,
    make_chained: Any,
    run_stages: Any,
) -> None:
    originals = tmp_path / "pictures"
    originals.mkdir()
    for number in range(120):
        size = ((100, 80), (80, 100), (90, 90))[number % 3]
        picture(*size, seed=number).save(originals / f"{number}.png")
    resize = f"resolution = 64\nstep = 16\nmin_side = 32\nmax_side = 128\nkeep = {keep}\n"
    jobs = []
    for name in ("whole", "killed"):
        job = make_chained(tmp_path / name, tiny.as_file, originals, resize)
        run_stages(job, told, "download", "caption")
        jobs.append(job)
    (originals / "7.png").write_bytes(b"damaged since")
    whole, killed = jobs
    _killed(whole, 0)
    _killed(killed, KILLS)
    left = _left(killed)
    assert left == _left(whole)
    assert sum(name.endswith(".safetensors") for name in left) > 60
    assert not [path for path in killed.workspace.root.rglob("*") if path.name.endswith(".part")]
