"""[lora].init in a build: round 1 alone starts from the file, and is made anew with another."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.artefacts.job import Job
from pipeline.errors import RequestError
from pipeline.rounds.training import training


def starting_from(job: Job, file: Path) -> Job:
    lora = job.recipe.lora.model_copy(update={"init": file})
    return replace(job, build=job.recipe.model_copy(update={"lora": lora}))


def test_its_bytes_are_part_of_round_1_and_its_place_is_not(
    fresh_job: Callable[..., Job], tmp_path: Path
) -> None:
    plain = fresh_job()

    def fingerprints(name: str, value: float) -> tuple[str, str]:
        file = tmp_path / name
        save_file({"lora_unet_x.lora_up.weight": torch.full((4, 4), value)}, file)
        job = starting_from(plain, file)
        first, second = (training(job, law, (), None, 1) for law in job.recipe.law()[:2])
        assert first.start.init == file and second.start.init is None
        return first.fingerprint, second.fingerprint

    here, there, other = fingerprints("a", 1.0), fingerprints("b", 1.0), fingerprints("c", 2.0)
    assert here == there
    assert here[0] != other[0] and here[1] == other[1]
    nowhere = starting_from(plain, tmp_path / "nowhere.safetensors")
    with pytest.raises(RequestError, match=r"no LoRA .*nowhere.safetensors \(\[lora\].init\)"):
        training(nowhere, plain.recipe.law()[0], (), None, 1)
