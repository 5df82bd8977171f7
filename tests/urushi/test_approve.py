from pathlib import Path

from pipeline.artefacts.decisions import ask, read_decisions
from pipeline.artefacts.runs import write_run
from pipeline.artefacts.workspace import Workspace


def test_the_answer_is_written_into_the_build(urushi, tmp_path: Path) -> None:
    folder = Workspace(tmp_path / "workspace").build("coat")
    folder.root.mkdir(parents=True)
    none = urushi("approve", "coat", "continue")
    assert none.returncode == 2
    assert "No round of coat waits for a decision" in none.stderr
    ask(folder.round(2).decisions, "5ead", "t")
    wrong = urushi("approve", "coat", "redo", "--lr-scale", "0")
    assert wrong.returncode == 2
    assert "lr_scale" in wrong.stderr
    done = urushi("approve", "coat", "redo", "--lr-scale", "0.5")
    assert done.returncode == 0, done.stderr
    assert "coat, round 2: redo" in done.stdout
    assert "Run the build's command again to go on." in done.stdout
    found = read_decisions(folder.round(2).decisions)
    assert not found.waiting
    assert [redo.lr_scale for redo in found.redos("t")] == [0.5]


def test_status_says_who_is_waited_for(urushi, tmp_path: Path) -> None:
    folder = Workspace(tmp_path / "workspace").build("coat")
    folder.root.mkdir(parents=True)
    write_run(folder.root, "waiting", fingerprint="x", error="Round 2 of coat waits for you.")
    told = urushi("status").stdout
    assert "build coat: waiting" in told
    assert "Round 2 of coat waits for you." in told
