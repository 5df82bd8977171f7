"""Rounds that start at directions that are there: a file each, merged and rebuilt as others."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.artefacts.job import Job
from pipeline.artefacts.ledger import read_ledger
from pipeline.progress import Silent
from pipeline.rounds.rebuild import plan, rebuild
from pipeline.rounds.stage import parts


@pytest.mark.drill
@pytest.mark.parametrize(("start", "ranks"), [("carried", [4, 6, 6]), ("pissa", [8, 8, 8])])
def test_their_build(
    fresh_job: Callable[..., Job], tmp_path: Path, start: str, ranks: list[int]
) -> None:
    changes = ("[rounds]\n", f'[rounds]\nstart = "{start}"\ngate = "always"\nstrength = 0.5\n')
    job = fresh_job(changes)
    for part in parts(job):
        part.run(job, Silent())
    ledger = read_ledger(job.folder.ledger)
    assert [row.round for row in ledger.rounds] == [1, 2, 3]
    # Held-out losses see the net delta on the checkpoint before: at 0 the function is that one's.
    for before, after in pairwise(ledger.rounds):
        assert after.heldout_before == pytest.approx(before.heldout_after, rel=2e-3)
    found = []
    for number in (1, 2, 3):
        tensors = load_file(job.folder.round(number).lora)
        name = next(key for key in tensors if key.endswith("to_q.lora_down.weight"))
        found.append(len(tensors[name]))
    assert found == ranks
    for number in (2, 3):
        planned = plan(job.folder, ledger, job.workspace.identities, number)
        # Raises where the bytes are not those that training saw.
        assert planned.expected is not None
        rebuild(planned, tmp_path / f"again-{number}.safetensors")
