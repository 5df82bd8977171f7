"""A build of DoRA rounds: each is merged on what the ones before made, and no sum is claimed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import merge
from pipeline.artefacts.job import Job
from pipeline.artefacts.ledger import read_ledger
from pipeline.progress import Silent
from pipeline.rounds.stage import parts


@pytest.mark.drill
def test_a_build_of_doras(fresh_job: Callable[..., Job], tmp_path: Path) -> None:
    job = fresh_job(
        ("conv_rank = 2", "conv_rank = 2\ndora = true"),
        ("count = 3", 'count = 2\nrefit = false\ngate = "always"\nstrength = [0.8, 0.6]'),
        ("steps = [8]", "steps = [4]"),
    )
    for part in parts(job):
        part.run(job, Silent())
    folder, ledger = job.folder, read_ledger(job.folder.ledger)
    assert ledger.final == folder.final.name and ledger.final_lora is None
    assert not folder.final_lora.exists() and folder.report.exists()
    loras = [folder.round(number).lora for number in (1, 2)]
    assert all(any(key.endswith("dora_scale") for key in load_file(lora)) for lora in loras)
    addends = [merge.Addend(lora, s) for lora, s in zip(loras, (0.8, 0.6), strict=True)]
    merge.merge(job.recipe.base.checkpoint, addends, tmp_path / "again.safetensors")
    again, final = load_file(tmp_path / "again.safetensors"), load_file(folder.final)
    assert all(final[key].equal(again[key]) for key in again)
    # What the second was trained on is what the first made.
    first = load_file(folder.round(1).checkpoint)
    assert any(not torch.equal(first[key], final[key]) for key in first)
