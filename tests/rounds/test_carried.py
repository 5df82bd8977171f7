"""A build of carried rounds: one file a round, judged, merged and rebuilt like any other."""

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
def test_a_carried_build(fresh_job: Callable[..., Job], tmp_path: Path) -> None:
    changes = ("[rounds]\n", '[rounds]\nstart = "carried"\ngate = "always"\nstrength = 0.5\n')
    job = fresh_job(changes)
    for part in parts(job):
        part.run(job, Silent())
    ledger = read_ledger(job.folder.ledger)
    assert [row.round for row in ledger.rounds] == [1, 2, 3]
    # Held-out losses see the net delta on the checkpoint before: at 0 the function is that one's.
    for before, after in pairwise(ledger.rounds):
        assert after.heldout_before == pytest.approx(before.heldout_after, rel=2e-3)
    ranks = []
    for number in (1, 2, 3):
        tensors = load_file(job.folder.round(number).lora)
        name = next(key for key in tensors if key.endswith("to_q.lora_down.weight"))
        ranks.append(len(tensors[name]))
    assert ranks == [4, 6, 6]
    for number in (2, 3):
        planned = plan(job.folder, ledger, job.workspace.identities, number)
        # Raises where the bytes are not those that training saw.
        assert planned.expected is not None
        rebuild(planned, tmp_path / f"again-{number}.safetensors")
