import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from merge import MergeError
from pipeline.errors import RequestError
from urushi.lora import app
from urushi.recipes import tiny_base

Urushi = Callable[..., subprocess.CompletedProcess[str]]

BASE = tiny_base() / "tiny.safetensors"
MIDDLE = "lora_unet_mid_block_resnets_0_conv1"
PLACE = "model.diffusion_model.middle_block.0.in_layers.2.weight"


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """The tiny base with a delta of rank 3 on one convolution and one layer of the text encoder."""
    generator, weights = torch.Generator().manual_seed(1), load_file(BASE)
    text = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    for key in (PLACE, text):
        rows, columns = weights[key].flatten(1).shape
        delta = torch.randn(rows, 3, generator=generator) @ torch.randn(
            3, columns, generator=generator
        )
        weights[key] = weights[key].float() + 0.1 * delta.view(weights[key].shape)
    save_file(weights, tmp_path / "tuned.safetensors")
    return tmp_path / "tuned.safetensors"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """run("info", path) -> what it printed. Errors are raised as they are."""
    monkeypatch.setenv("URUSHI_WORKSPACE", str(tmp_path / "workspace"))

    def call(*words: object) -> str:
        ended = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert ended.exit_code == 0, ended.output
        return ended.stdout

    return call


def test_the_tools_one_after_another(run: Callable[..., str], tuned: Path, tmp_path: Path) -> None:
    whole, small, spelled, back, total = (
        tmp_path / f"{name}.safetensors" for name in ("whole", "small", "spelled", "back", "sum")
    )
    said = run("extract", tuned, BASE, "--rank", 3, "--dtype", "float32", "--out", whole)
    assert "2 layers" in said and "100.00% of the difference kept; rank 3." in said

    found = json.loads(run("info", whole, "--json"))
    assert (found["family"], found["writer"]) == ("sd15", "kohya")
    assert (found["ranks"], found["kinds"]) == ({"3": 2}, {"linear": 1, "3x3": 1})
    assert found["networks"] == {"unet": 1, "te1": 1}

    said = run("resize", whole, "--rank", 2, "--conv-rank", 1, "--out", small)
    assert "ranks 1 to 2" in said and f"{MIDDLE}  " in said
    tensors = load_file(small)
    assert tensors[f"{MIDDLE}.lora_down.weight"].shape[0] == 1
    told = json.loads(run("resize", whole, "--energy", 0.5, "--json", "--out", small))
    assert {row["before"] for row in told["layers"]} == {3}
    assert all(row["share"] ** 2 >= 0.5 for row in told["layers"])

    said = run("convert", whole, "--to", "diffusers", "--out", spelled)
    assert "is now " in said and "2 modules" in said
    assert "unet.mid_block.resnets.0.conv1.lora_A.weight" in load_file(spelled)
    run("convert", spelled, "--to", "kohya", "--out", back)
    before, after = load_file(whole), load_file(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())

    run("concat", whole, spelled, "--strength", "1,-1", "--blocks", "M00=0.5", "--out", total)
    tensors = load_file(total)
    up, down = (tensors[f"{MIDDLE}.lora_{part}.weight"] for part in ("up", "down"))
    assert down.shape[0] == 6
    assert torch.allclose(up.flatten(1) @ down.flatten(1), torch.zeros(()), atol=1e-6)


def test_info_for_a_person(run: Callable[..., str], tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "lora.safetensors"
    run("extract", tuned, BASE, "--rank", 2, "--networks", "unet", "--out", out)
    said = run("info", out)
    assert f"{out}: SD 1.5, kohya layout" in said or f"{out}: family not said" in said
    assert f"\n  {MIDDLE}  " in said
    assert "ss_network_dim: 2" in said and "dtypes: F16" in said


def test_extract_says_what_it_left(run: Callable[..., str], tuned: Path, tmp_path: Path) -> None:
    weights = load_file(tuned)
    key = "model.diffusion_model.time_embed.0.weight"
    weights[key] = weights[key].float() + 1.0
    save_file(weights, tuned)
    out = tmp_path / "lora.safetensors"
    said = run("extract", tuned, BASE, "--energy", 0.9, "--networks", "unet", "--out", out)
    assert "1 weights left out (programs look for no LoRA there)" in said
    assert "1 weights left out (not asked for), the largest te1.text_model" in said
    assert not any("lora_te" in name for name in load_file(out))


def test_hashes_are_remembered(run: Callable[..., str], tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "lora.safetensors"
    run("extract", tuned, BASE, "--rank", 2, "--out", out)
    memory = json.loads(next((tmp_path / "workspace").rglob("identities.json")).read_text())
    with safe_open(out, "pt") as file:
        lineage = json.loads(file.metadata()["urushi.lineage"])
    assert memory[str(tuned.resolve())][1] == lineage["tuned"]["blake3"]
    assert memory[str(BASE.resolve())][1] == lineage["base"]["blake3"]


def test_wrong_requests(run: Callable[..., str], tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "lora.safetensors"
    with pytest.raises(RequestError, match="Say what to keep: --rank"):
        run("extract", tuned, BASE, "--out", out)
    with pytest.raises(RequestError, match="--networks 'vae' is not one of unet, te, te1, te2"):
        run("extract", tuned, BASE, "--rank", 2, "--networks", "unet,vae", "--out", out)
    with pytest.raises(MergeError, match="is not in"):
        run("extract", tuned, BASE, "--energy", 95, "--out", out)
    with pytest.raises(MergeError, match="overwrite its input"):
        run("extract", tuned, BASE, "--rank", 2, "--out", tuned)
    assert not out.exists()


def test_errors_cross_with_their_code(urushi: Urushi, tmp_path: Path) -> None:
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    ended = urushi("lora", "info", "page.safetensors")
    assert ended.returncode == 2
    assert "page.safetensors is a text file" in ended.stderr and "Traceback" not in ended.stderr
