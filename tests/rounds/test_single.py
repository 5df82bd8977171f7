"""One LoRA beside the rounds: its checkpoints, where it was best, and its pieces refitted."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artefacts.job import Job
from pipeline.artefacts.ledger import read_ledger
from pipeline.progress import Silent
from pipeline.rounds import stage
from pipeline.rounds.single import differences, upto
from pipeline.train.product import snapshot_steps
from urushi.refit import refit

JobMaker = Callable[..., Job]


def test_pieces_make_checkpoints() -> None:
    """Strength 1 of the first k pieces is checkpoint k, whole and alone."""
    for number in range(1, 5):
        factors = differences(upto(number, 4))
        assert factors == tuple(float(k == number) for k in range(1, 5))
    assert differences(upto(0, 4)) == (0.0,) * 4
    # 0.5 of the first, nothing of the second: half of checkpoint 1.
    assert differences((0.5, 0.0)) == (0.5, 0.0)
    assert differences((1.0, 0.25)) == (0.75, 0.25)


@pytest.mark.parametrize(
    ("steps", "count", "kept"),
    [(12, 3, (4, 8, 12)), (10, 4, (2, 5, 8, 10)), (2, 5, (1, 2)), (7, 1, (7,))],
)
def test_snapshots_are_even_and_end_with_the_last(
    steps: int, count: int, kept: tuple[int, ...]
) -> None:
    assert snapshot_steps(steps, count) == kept


@pytest.mark.drill
def test_the_baseline_stands_beside_the_rounds_and_by_hand(
    fresh_job: JobMaker, workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = fresh_job(
        ("learning_rate = 2e-3", 'learning_rate = 2e-3\ngate = "always"\nstrength = 0.5'),
        ("count = 3", "count = 2"),
        ("[preview]", "[baseline]\nsingle = true\n[preview]"),
        ("[8]", "[4]"),
    )
    for part in stage.parts(job):
        part.run(job, Silent())
    ledger = read_ledger(job.folder.ledger)
    beside = ledger.baseline
    assert beside is not None and beside.steps == 8 and beside.learning_rate == 2e-3
    single = beside.single
    assert [point.step for point in single.snapshots] == [4, 8]
    best = min(single.snapshots, key=lambda point: point.loss)
    assert single.stopped_at == best.step
    assert single.origin == pytest.approx(ledger.heldout_origin, rel=1e-4)
    assert beside.rounds == pytest.approx(ledger.rounds[-1].heldout_after, rel=2e-3)
    mean = single.refitted - beside.rounds
    assert beside.low <= mean <= beside.high
    assert all(part.run(job, Silent()).already for part in stage.parts(job))
    folder = job.folder.baseline
    files = sorted(folder.glob("step-*.safetensors"))
    assert len(files) == 2 and (folder / "refitted.safetensors").exists()
    refit(job.recipe_path, files, tmp_path / "one.safetensors", job.workspace.root)
    said = capsys.readouterr().out
    assert f"refitted {single.refitted:.5f}" in said
    one, there = tmp_path / "one.safetensors", folder / "refitted.safetensors"
    assert one.read_bytes() == there.read_bytes()
