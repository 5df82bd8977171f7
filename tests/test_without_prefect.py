"""The core runs where Prefect is not installed: `make core` runs its tests so; here is a sample."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLI = "from urushi.cli import main; main()"


def python(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    place = os.pathsep.join([str(ROOT / "tests" / "without_prefect"), str(ROOT)])
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": place},
    )


def test_the_cores_tests_pass_without_it() -> None:
    """Rooms that take seconds; all of them by `make core`."""
    ended = python("-c", "import prefect")
    assert "No module named 'prefect'" in ended.stderr, "the test's own premise"
    rooms = [
        "tests/artefacts/test_job.py",
        "tests/artefacts/test_runs.py",
        "tests/resize/test_ladder.py",
    ]
    ended = python("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *rooms)
    assert ended.returncode == 0, ended.stdout[-2000:]


def test_what_needs_it_says_so(tmp_path: Path) -> None:
    for words in (["up"], ["drain"], ["doctor"]):
        ended = python("-c", CLI, *words, "--workspace", tmp_path)
        assert ended.returncode == 2, ended.stderr
        assert "needs Prefect, which is not installed" in ended.stderr
