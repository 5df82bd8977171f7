"""SIGKILL at any moment, then the same command: the same end, and hardly anything asked twice."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.booru import BooruServer, running
from demo.corpus import Corpus
from pipeline.artefacts.records import ImageRecord

PROGRAM = """
import sys
from pathlib import Path
from pipeline.artefacts.job import load_job
from pipeline.download.stage import run
from pipeline.progress import Silent
run(load_job(Path(sys.argv[1]), Path(sys.argv[2])), Silent())
"""
ROOT = Path(__file__).parents[2]
KILLS = 5


def start(downloading) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", PROGRAM, str(downloading.recipe), str(downloading.workspace)]
    return subprocess.Popen(command, cwd=ROOT)


def kill_after(process: "subprocess.Popen[bytes]", booru: BooruServer, hits: int) -> None:
    """Kills the process when it has made so many requests, or lets it finish if it makes fewer."""
    target = booru.count() + hits
    while booru.count() < target and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()


def timeless(images: dict[str, ImageRecord]) -> list[ImageRecord]:
    """Without when each was read."""
    return [image.model_copy(update={"scored_at": ""}) for image in images.values()]


@pytest.mark.parametrize("seed", [1])
def test_killed_at_random_it_ends_like_an_undisturbed_run(
    downloading, booru: BooruServer, corpus: Corpus, seed: int
) -> None:
    rng = random.Random(seed)
    downloading.write(booru.url, requests_per_second=150, connections=3)
    killed = 0
    # One dies before the first answer is stored, the others anywhere behind.
    for hits in [1, *(rng.randrange(2, 14) for _ in range(KILLS - 1))]:
        process = start(downloading)
        kill_after(process, booru, hits)
        killed += process.returncode < 0
        time.sleep(0.02)  # The server answers what it was asked last, to no one.
    assert killed >= 5
    process = start(downloading)
    assert process.wait() == 0
    disturbed = booru.count()
    rows = timeless(downloading.images())
    lost = (downloading.folder.images / "failures.jsonl").read_bytes()
    assert set(downloading.images()) == corpus.wanted() == set(downloading.files())
    assert not list(downloading.folder.root.rglob("*.part"))

    downloading.workspace = downloading.workspace.with_name("undisturbed")
    with running(corpus=corpus) as other:
        downloading.write(other.url)
        downloading.run()
        assert timeless(downloading.images()) == rows
        assert (downloading.folder.images / "failures.jsonl").read_bytes() == lost
        # A kill costs the files under way, and one or two pages or copies that were not noted yet.
        assert disturbed <= other.count() + KILLS * (3 + 2)
