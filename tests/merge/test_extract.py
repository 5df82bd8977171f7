"""extract: the LoRA between two checkpoints, against diffusers' own loading of it."""

import json
import math
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from merge import MergeError
from merge.extract import extract
from merge.rounding import most_rounding, rounding
from merge.thin import Cut

UNET = "model.diffusion_model."
OUTSIDE = re.compile(r".*(time_embed|label_emb|input_blocks\.0\.0|model\.out\.|text_projection)")
LAYER = re.compile(
    r"(model\.diffusion_model\.|cond_stage_model\.|conditioner\.).*(blocks?|layers)\.\d"
)


def tune(path, out, rank=2, only=LAYER, size=0.05, dtype=torch.float32):
    """A random delta of `rank` on every matrix and kernel of the blocks, by the file's keys."""
    generator = torch.Generator().manual_seed(rank)
    tensors = load_file(path)
    for key, value in tensors.items():
        if value.dtype == torch.float16:
            value = value.to(dtype)
            if value.ndim > 1 and only.match(key) and not OUTSIDE.match(key):
                rows, columns = value.flatten(1).shape
                up = torch.randn(rows, rank, generator=generator) * size
                delta = up @ torch.randn(rank, columns, generator=generator) * size
                value = value + delta.view(value.shape).to(dtype)
        tensors[key] = value
    save_file(tensors, out, {"note": "tuned"})
    return out


def assert_loads_as(load, state, base, lora, tuned, atol):
    """diffusers: the base with the LoRA has the tuned checkpoint's weights."""
    pipeline = load(base, dtype=torch.float32)
    pipeline.load_lora_weights(lora)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    got, wanted = state(pipeline), state(load(base, tuned, torch.float32))
    before = state(base)
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.allclose(got[key], value, rtol=0, atol=atol), key
    moved = [key for key, value in wanted.items() if not torch.equal(value, before[key].float())]
    assert len(moved) > 50


@pytest.mark.parametrize(
    ("name", "layout"), [("odd", "kohya"), ("sdxl", "kohya"), ("sdxl", "diffusers")]
)
def test_a_difference_of_low_rank_is_extracted_whole(tiny, load, state, tmp_path, name, layout):
    base = tiny(name)
    tuned = tune(base.file, tmp_path / "tuned.safetensors")
    out = tmp_path / "lora.safetensors"
    report = extract(tuned, base.file, out, Cut(rank=2), layout=layout, dtype="float32")
    assert report.share == pytest.approx(1.0, abs=1e-9) and report.left == ()
    assert all(row.rank == 2 and row.share > 0.99999 for row in report.layers)
    assert report.equal > 0
    if name == "sdxl" and layout == "kohya":
        keys = load_file(out).keys()
        assert "lora_unet_middle_block_1_proj_in.alpha" in keys
        assert "lora_te2_text_model_encoder_layers_1_self_attn_k_proj.alpha" in keys
    assert_loads_as(load, state, base, out, tuned, 2e-6)


@pytest.mark.parametrize("name", ["tiny", "sdxl"])
def test_folders_give_what_single_files_give(tiny, load, tmp_path, name):
    base = tiny(name)
    tuned = tune(base.file, tmp_path / "tuned.safetensors")
    load(base, tuned, torch.float32).save_pretrained(tmp_path / "tuned")
    single, folder = tmp_path / "single.safetensors", tmp_path / "folder.safetensors"
    one = extract(tuned, base.file, single, Cut(rank=3))
    two = extract(tmp_path / "tuned", base.folder, folder, Cut(rank=3))
    mixed = extract(tmp_path / "tuned", base.file, tmp_path / "mixed.safetensors", Cut(rank=3))
    assert {row.name for row in one.layers} == {row.name for row in two.layers}
    assert mixed.tuned == two.tuned and mixed.base == one.base
    first, second = load_file(single), load_file(folder)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_fewer_ranks_keep_what_the_report_says(base, load, state, tmp_path):
    tuned = tune(base.file, tmp_path / "tuned.safetensors", rank=6)
    out = tmp_path / "lora.safetensors"
    report = extract(tuned, base.file, out, Cut(rank=3), conv_rank=1, dtype="float32")
    before, after, lora = load_file(base.file), load_file(tuned), load_file(out)
    name, key = "lora_unet_down_blocks_0_resnets_0_conv1", f"{UNET}input_blocks.1.0.in_layers.2"
    delta = (after[f"{key}.weight"] - before[f"{key}.weight"].float()).flatten(1).double()
    values = torch.linalg.svdvals(delta)
    row = next(row for row in report.layers if row.name == "unet.down_blocks.0.resnets.0.conv1")
    assert (row.rank, row.before) == (1, 16)
    assert row.norm == pytest.approx(float(values.norm()))
    assert row.share == pytest.approx(float(values[0] / values.norm()), rel=1e-5)
    found = lora[f"{name}.lora_up.weight"].flatten(1) @ lora[f"{name}.lora_down.weight"].flatten(1)
    assert float((delta - found).norm()) == pytest.approx(float(values[1:].norm()), rel=1e-4)
    assert lora[f"{name}.alpha"] == 1.0
    kept = math.fsum((row.share * row.norm) ** 2 for row in report.layers)
    total = math.fsum(row.norm**2 for row in report.layers)
    assert report.share == pytest.approx(math.sqrt(kept / total)) and report.share < 0.95
    linear = [row for row in report.layers if ".to_q" in row.name]
    assert {row.rank for row in linear} == {3}


def test_energy_chooses_each_layers_rank(base, tmp_path):
    tuned = tune(base.file, tmp_path / "tuned.safetensors", rank=6)
    out = tmp_path / "lora.safetensors"
    report = extract(tuned, base.file, out, Cut(energy=0.8))
    assert all(row.share**2 >= 0.8 - 1e-6 for row in report.layers)
    assert len({row.rank for row in report.layers}) > 1
    with safe_open(out, "pt") as file:
        found = file.metadata()
    assert found["ss_network_dim"] == "Dynamic"
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert json.loads(found["urushi.lineage"]) == {
        "tuned": {"blake3": report.tuned},
        "base": {"blake3": report.base},
        "extracted": {"energy": 0.8},
    }
    assert {value.dtype for value in load_file(out).values()} == {torch.float16}


def test_what_no_lora_holds_is_told(base, tmp_path):
    tuned = tune(base.file, tmp_path / "tuned.safetensors")
    tensors = load_file(tuned)
    changed = {
        "input_blocks.0.0.weight": "unet.conv_in.weight",
        "time_embed.0.weight": "unet.time_embedding.linear_1.weight",
        "middle_block.0.in_layers.0.weight": "unet.mid_block.resnets.0.norm1.weight",
        "middle_block.0.in_layers.2.bias": "unet.mid_block.resnets.0.conv1.bias",
    }
    for key in changed:
        tensors[UNET + key] = tensors[UNET + key] + 0.5
    save_file(tensors, tuned)
    report = extract(tuned, base.file, tmp_path / "lora.safetensors", Cut(rank=2))
    assert {left.name: left.reason for left in report.left} == dict.fromkeys(
        changed.values(), "no LoRA layer"
    )
    norms = {left.name: left.norm for left in report.left}
    bias = tensors[UNET + "middle_block.0.in_layers.2.bias"]
    wanted = 0.5 * math.sqrt(bias.numel())
    assert norms["unet.mid_block.resnets.0.conv1.bias"] == pytest.approx(wanted)
    missing = math.fsum(norm**2 for norm in norms.values())
    kept = math.fsum(row.norm**2 for row in report.layers)
    assert report.share == pytest.approx(math.sqrt(kept / (kept + missing)), rel=1e-5)


def test_networks_and_convolutions_that_were_not_asked_for(tiny, tmp_path):
    base = tiny("sdxl")
    tuned = tune(base.file, tmp_path / "tuned.safetensors")
    out = tmp_path / "lora.safetensors"
    report = extract(tuned, base.file, out, Cut(rank=2), networks=("unet", "te2"), conv_rank=0)
    names = {key.partition(".")[0] for key in load_file(out)}
    assert {name.split("_")[1] for name in names} == {"unet", "te2"}
    tensors = load_file(out)
    assert not any(value.ndim == 4 and value.shape[2:] != (1, 1) for value in tensors.values())
    assert {left.reason for left in report.left} == {"not asked for"}
    left = {left.name for left in report.left}
    assert "unet.mid_block.resnets.0.conv1.weight" in left
    assert "te1.text_model.encoder.layers.0.mlp.fc1.weight" in left
    assert report.share < 1.0


def test_the_rounding_of_the_files_is_no_difference(base, tmp_path):
    """A bf16 copy of a float32 model differs from it everywhere, and says nothing."""
    tuned = tune(base.file, tmp_path / "tuned.safetensors")
    copy, out = tmp_path / "copy.safetensors", tmp_path / "lora.safetensors"
    tensors = load_file(tuned)
    key = f"{UNET}middle_block.0.in_layers.2.weight"
    save_file({k: v.bfloat16() if v.is_floating_point() else v for k, v in tensors.items()}, copy)
    with pytest.raises(MergeError, match="nowhere that a LoRA can hold \\(rounding: te1") as caught:
        extract(copy, tuned, out, Cut(rank=2))
    assert caught.value.exit_code == 2 and not out.exists()
    changed = load_file(copy)
    changed[key] = (tensors[key] + 0.1).bfloat16()
    save_file(changed, copy)
    report = extract(copy, tuned, out, Cut(rank=2))
    assert [row.name for row in report.layers] == ["unet.mid_block.resnets.0.conv1"]
    assert {left.reason for left in report.left} == {"rounding"}
    assert report.layers[0].share > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_what_rounding_costs(dtype):
    exact = torch.randn(300, 300, generator=torch.Generator().manual_seed(0)) * 0.02
    exact[0] = 0.0
    cost = float((exact - exact.to(dtype).float()).square().sum())
    assert rounding(exact.to(dtype).float(), dtype) == pytest.approx(cost, rel=0.05)
    assert rounding(exact, dtype) <= most_rounding(exact, dtype) <= 8 * rounding(exact, dtype)
    # Near 1 the step of fp16 is 2^-10, by hand.
    assert rounding(torch.tensor([1.5]), torch.float16) == pytest.approx(2.0**-20 / 12)
    assert rounding(torch.tensor([0.0]), torch.float16) == pytest.approx(2.0**-48 / 12)


def test_the_same_checkpoint_twice(base, tmp_path):
    copy = shutil.copy(base.file, tmp_path / "copy.safetensors")
    with pytest.raises(MergeError, match="do not differ in any layer"):
        extract(tmp_path / "copy.safetensors", base.file, tmp_path / "l.safetensors", Cut(rank=2))
    assert [path.name for path in tmp_path.iterdir()] == [copy.name]


def test_the_same_bytes_each_time(base, tmp_path):
    tuned = tune(base.file, tmp_path / "tuned.safetensors", rank=6)
    told = []
    for name in ("a", "b"):
        torch.manual_seed(len(told))
        extract(
            tuned,
            base.file,
            tmp_path / f"{name}.safetensors",
            Cut(rank=2),
            on_layer=lambda done, total: told.append((done, total)),
        )
    contents = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("a", "b")]
    assert contents[0] == contents[1]
    assert told[: len(told) // 2] == [(i + 1, told[0][1]) for i in range(told[0][1])]


def test_checkpoints_that_are_not_of_one_kind(tiny, base, tmp_path):
    out = tmp_path / "lora.safetensors"
    with pytest.raises(MergeError, match="different families"):
        extract(tiny("sdxl").file, base.file, out, Cut(rank=2))
    with pytest.raises(MergeError, match="Only one of"):
        extract(tiny("sd15").file, base.file, out, Cut(rank=2))
    tensors = load_file(base.file)
    key = UNET + "input_blocks.0.0.weight"
    tensors[key] = torch.zeros(tensors[key].shape[0], 9, 3, 3).half()
    save_file(tensors, tmp_path / "inpainting.safetensors")
    with pytest.raises(MergeError, match=r"unet.conv_in: other sizes .*inpainting"):
        extract(tmp_path / "inpainting.safetensors", base.file, out, Cut(rank=2))
    tensors = load_file(base.file)
    tensors[UNET + "middle_block.0.in_layers.2.weight"][0, 0] = math.inf
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(MergeError, match=r"middle_block.0.in_layers.2.weight .* NaN or infinity"):
        extract(tmp_path / "broken.safetensors", base.file, out, Cut(rank=2))
    with pytest.raises(MergeError, match="overwrite its input"):
        extract(base.file, tmp_path / "broken.safetensors", base.file, Cut(rank=2))
    assert not out.exists()
