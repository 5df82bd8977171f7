import hashlib
import json
import math
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge import LayerReport, MergeError, MergeReport, Strength
from merge.layers import Layer
from merge.strength import strength_at
from pipeline.artefacts.identity import digest_file
from pipeline.errors import RequestError
from urushi.identities import Remembered
from urushi.merge import parse, render
from urushi.recipes import tiny_base

Urushi = Callable[..., subprocess.CompletedProcess[str]]

BASE = tiny_base() / "tiny.safetensors"
PLACES = {
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    ),
    "lora_unet_mid_block_resnets_0_conv1": (
        "model.diffusion_model.middle_block.0.in_layers.2.weight"
    ),
    "lora_unet_up_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (
        "model.diffusion_model.output_blocks.0.1.transformer_blocks.0.attn1.to_q.weight"
    ),
}


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """Rank 2 on one layer of the text encoder, of the middle and of the first output block."""
    generator, weights, tensors = torch.Generator().manual_seed(1), load_file(BASE), {}
    for module, key in PLACES.items():
        out, *inner = weights[key].shape
        kernel = [1] * (len(inner) - 1)
        down = torch.randn(2, *inner, generator=generator) * 0.1
        tensors[f"{module}.lora_down.weight"] = down
        tensors[f"{module}.lora_up.weight"] = torch.randn(out, 2, *kernel, generator=generator)
    save_file(tensors, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


@pytest.mark.parametrize(
    ("given", "count", "numbers"),
    [
        (["1"], 2, [1.0, 1.0]),
        (["0.7", "0.9"], 2, [0.7, 0.9]),
        (["0.7,0.9", "1"], 3, [0.7, 0.9, 1.0]),
        (["-0.5"], 1, [-0.5]),
        (["unet=1,te=0.5"], 2, [Strength(te1=0.5, te2=0.5)] * 2),
        (["0.7", "te=0"], 2, [0.7, Strength(te1=0.0, te2=0.0)]),
    ],
)
def test_strengths(given: list[str], count: int, numbers: list[float | Strength]) -> None:
    assert parse(given, [], count, None) == numbers


def test_blocks_multiply_strengths() -> None:
    first, second = parse(["0.5", "te=0.5"], ["M00=0.25,OUT03=0"], 2, None)
    middle, out, text = (
        Layer("x", network, block, (1, 1), (), ())
        for network, block in (("unet", "M00"), ("unet", "OUT03"), ("te1", "BASE"))
    )
    assert [strength_at(first, layer) for layer in (middle, out, text)] == [0.125, 0.0, 0.5]
    assert [strength_at(second, layer) for layer in (middle, out, text)] == [0.25, 0.0, 0.5]
    (shallow,) = parse(["1"], ["OUTS"], 1, "sdxl")
    assert isinstance(shallow, Strength) and shallow.family == "sdxl"


@pytest.mark.parametrize(
    ("given", "blocks", "count", "said"),
    [
        (["0.7", "0.9"], [], 3, "2 strengths for 3 LoRAs"),
        (["x"], [], 1, "'x' is not a number"),
        (["inf"], [], 1, "not a finite number"),
        (["0.7,,1"], [], 2, "'' is not a number"),
        (["1"], ["ALL", "OUTS"], 3, "2 block weights for 3 LoRAs"),
        (["1"], ["0.5"], 1, "--blocks 0.5 is one number"),
        (["1"], ["1,1,1"], 1, "has 3 numbers"),
    ],
)
def test_wrong_strengths(given: list[str], blocks: list[str], count: int, said: str) -> None:
    with pytest.raises((RequestError, MergeError), match=said):
        parse(given, blocks, count, None)


def test_a_merge_by_network_and_block(urushi: Urushi, lora: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "out.safetensors", tmp_path / "report.json"
    ended = urushi(
        *("merge", BASE, lora, "--strength", "unet=0.5,te=0.25", "--blocks", "M00=0"),
        *("--dtype", "float32", "--report", told, "--sha256", "--out", out),
    )
    assert ended.returncode == 0, ended.stderr
    assert "2 weights changed" in ended.stdout
    sha256 = hashlib.sha256(out.read_bytes()).hexdigest()
    assert f"sha256 {sha256}  {out}" in ended.stdout
    before, after, thin = load_file(BASE), load_file(out), load_file(lora)
    for (module, key), factor in zip(PLACES.items(), (0.25, 0.0, 0.5), strict=True):
        up, down = (thin[f"{module}.lora_{half}.weight"].flatten(1) for half in ("up", "down"))
        wanted = before[key].float() + factor * (up @ down).reshape(before[key].shape)
        assert torch.allclose(after[key], wanted, atol=1e-6), key
    report = json.loads(told.read_text())
    assert report["inputs"]["base"] == {"path": str(BASE), "blake3": digest_file(BASE)}
    (one,) = report["inputs"]["loras"]
    assert (one["path"], one["blake3"]) == (str(lora), digest_file(lora))
    assert one["strength"] == {
        "unet": 0.5,
        "te1": 0.25,
        "te2": 0.25,
        "blocks": {"M00": 0.0},
        "rest": 1.0,
    }
    assert report["sha256"] == {str(out): sha256}
    rows = {row["key"]: row for row in report["matched"]}
    assert set(rows) == set(PLACES.values())
    assert all(math.isfinite(row["relative"]) for row in rows.values())
    assert {"relative", "cast_loss", "unmatched", "warnings"} <= set(report)


def test_a_second_merge_remembers_the_hashes(urushi: Urushi, lora: Path, tmp_path: Path) -> None:
    words = ("merge", BASE, lora, "--out", "out.safetensors", "--report", "report.json")
    ended = urushi(*words)
    assert ended.returncode == 0, ended.stderr
    # What is in the memory is taken for true, which shows that nothing is hashed again.
    memory = tmp_path / "workspace" / "identities.json"
    known = json.loads(memory.read_text())
    assert set(known) == {str(BASE.resolve()), str(lora.resolve())}
    known[str(BASE.resolve())][1] = "f" * 64
    memory.write_text(json.dumps(known))
    assert urushi(*words).returncode == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["inputs"]["base"]["blake3"] == "f" * 64
    assert report["inputs"]["loras"][0]["blake3"] == digest_file(lora)


def test_what_changed_is_not_remembered(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.safetensors", tmp_path / "pipeline"
    (folder / "unet").mkdir(parents=True)
    for file in (path, folder / "unet" / "w.safetensors"):
        file.write_bytes(b"one")
    known = Remembered(tmp_path / "workspace", [path, folder, tmp_path / "none"])
    assert dict(known) == {}
    known.keep({path: "1", folder: "2", tmp_path / "none": "3"})
    again = Remembered(tmp_path / "workspace", [path, folder])
    assert dict(again) == {path: "1", folder: "2"}
    (folder / "unet" / "w.safetensors").write_bytes(b"another")
    assert dict(Remembered(tmp_path / "workspace", [path, folder])) == {path: "1"}
    # Changed while it was hashed: the hash is of neither.
    late = Remembered(tmp_path / "other", [path])
    path.write_bytes(b"changed meanwhile")
    late.keep({path: "4"})
    assert dict(Remembered(tmp_path / "other", [path])) == {}
    # A workspace that cannot be written costs time, not the merge.
    (tmp_path / "taken").write_text("")
    Remembered(tmp_path / "taken", [path]).keep({path: "5"})


def test_errors_of_a_merge_cross_with_their_code(urushi_here: Urushi, tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_text("hello")
    header = json.dumps({}).encode()
    (tmp_path / "lora.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    before = sorted(tmp_path.iterdir())
    words = ("merge", "base.safetensors", "lora.safetensors", "--out")
    for more, said in (
        (("out.safetensors",), "base.safetensors"),
        (("out.safetensors", "--blocks", "OUTALL"), "base.safetensors"),
        (("o", "--strength", "x"), "not a number"),
        (("o", "--dtype", "int8"), "int8"),
        (("o", "--report", "o"), "--report o is an input or the output"),
        (("o", "--report", "."), "is a folder"),
        (("o", "--report", "none/r.json"), "There is no folder"),
    ):
        ended = urushi_here(*words, *more)
        assert (ended.returncode, "Traceback" in ended.stderr) == (2, False), ended.stderr
        assert said in ended.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_the_table_is_short(tmp_path: Path) -> None:
    rows = [
        LayerReport(f"w{n}", f"m{n}", "F16", 1e-5, 0.1, 1e-5, n / 100, None) for n in range(100)
    ]
    rows.append(LayerReport("still", "m", "F16", 0.0, 0.0, 0.0, 0.0, None))
    report = MergeReport(
        out=tmp_path / "out.safetensors",
        base="b",
        addends=("a",),
        matched=tuple(rows),
        unmatched=tuple(f"lora: module{n}" for n in range(20)),
        relative=0.1,
        cast_loss=0.5,
        tensors=101,
        size=1000,
        warnings=("The cast hides 50%.",),
    )
    shown = render(report)
    assert len(shown.splitlines()) <= 24
    assert "100 weights changed by 10.000% of their norm (1 more stay as they were)" in shown
    assert "w99" in shown and "w91" not in shown
    assert "module7" in shown and "module8" not in shown and "and 12 more" in shown
