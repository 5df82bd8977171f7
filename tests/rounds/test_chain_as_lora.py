"""`urushi lora extract BUILD`: the whole chain as one LoRA."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import merge
from pipeline.artefacts.job import Job
from pipeline.errors import RequestError
from urushi.lora import app


@pytest.fixture
def extract(finished: Job, tmp_path: Path) -> Callable[..., str]:
    """extract("--rank", 2) -> what it printed; the LoRA is tmp_path/one.safetensors."""

    def run(*words: object, out: Path = tmp_path / "one.safetensors") -> str:
        asked = ["extract", "coats", "--out", out, "--workspace", finished.workspace.root, *words]
        ended = CliRunner().invoke(app, [str(word) for word in asked], catch_exceptions=False)
        assert ended.exit_code == 0, ended.output
        return ended.stdout

    return run


def deltas(lora: Path) -> dict[str, torch.Tensor]:
    """In float64, by module."""
    tensors, found = load_file(lora), {}
    for key in tensors:
        name, _, part = key.partition(".")
        if part == "alpha":
            up, down = (tensors[f"{name}.lora_{p}.weight"].flatten(1).double() for p in UP_DOWN)
            found[name] = float(tensors[key]) / len(down) * (up @ down)
    return found


UP_DOWN = ("up", "down")


def test_merged_into_the_origin_it_gives_the_final_checkpoint(
    finished: Job, extract: Callable[..., str], tmp_path: Path
) -> None:
    said = extract()
    assert "0.5 x round 1 + 0.5 x round 2 + 0.5 x round 3\n" in said and "exact" in said
    merged = tmp_path / "merged.safetensors"
    one = tmp_path / "one.safetensors"
    merge.merge(finished.recipe.base.checkpoint, [merge.Addend(one, 1.0)], merged)
    final, again = load_file(finished.folder.final), load_file(merged)
    origin = load_file(finished.recipe.base.checkpoint)
    assert list(final) == list(again)
    moved = 0
    for key, weight in final.items():
        unit = torch.finfo(torch.float16).eps * weight.double().abs().clamp(min=2**-14)
        assert bool(((again[key].double() - weight.double()).abs() <= unit).all()), key
        moved += not weight.equal(origin[key])
    assert moved > 20


def test_cut_to_a_rank_it_says_the_energy_that_is_kept(
    extract: Callable[..., str], tmp_path: Path
) -> None:
    extract(out=tmp_path / "whole.safetensors")
    report = json.loads(extract("--rank", 2, "--dtype", "float32", "--json"))
    whole, cut = deltas(tmp_path / "whole.safetensors"), deltas(tmp_path / "one.safetensors")
    assert {layer["rank"] for layer in report["layers"]} == {2}
    energy = sum(float(d.square().sum()) for d in whole.values())
    missing = sum(float((whole[name] - cut[name]).square().sum()) for name in whole)
    # The best of a rank is orthogonal to what it leaves out.
    assert report["share"] ** 2 == pytest.approx(1 - missing / energy, abs=1e-6)
    assert 0.3 < report["share"] ** 2 < 0.999
    said = extract("--energy", 0.9)
    assert "of the energy; ranks" in said
    assert not list(tmp_path.glob(".*")), "what it was cut from is gone"


def test_what_cannot_be_is_refused(
    extract: Callable[..., str], finished: Job, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="exact sum in float32"):
        extract("--dtype", "float16")
    with pytest.raises(RequestError, match="leave --networks and --to away"):
        extract("--to", "diffusers")
    with pytest.raises(RequestError, match="is inside the build"):
        extract(out=finished.folder.root / "mine.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="a file where its folder should be"):
        extract("--rank", 2, out=tmp_path / "file" / "one.safetensors")
