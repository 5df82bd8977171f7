"""Against code that is not ours: diffusers' loaders and its own fusing of LoRAs."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from merge import Addend, from_ldm, merge, to_ldm

NAMES = ("tiny", "sd15", "odd")


def load(file, folder, dtype=torch.float16):
    return StableDiffusionPipeline.from_single_file(
        file, config=str(folder), local_files_only=True, torch_dtype=dtype, safety_checker=None
    )


def state(pipeline):
    return {
        f"{part}.{key}": value
        for part in ("unet", "vae", "text_encoder")
        for key, value in getattr(pipeline, part).state_dict().items()
    }


def ulps(a, b):
    """Distance of two fp16 tensors in units in the last place."""

    def ordered(x):
        bits = x.contiguous().view(torch.int16).to(torch.int32)
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(a) - ordered(b)).abs()


@pytest.mark.parametrize("name", NAMES)
def test_single_file_loads_with_every_weight_equal(tiny, name):
    base = tiny(name)
    loaded = state(load(base.file, base.folder))
    expected = state(base)
    assert loaded.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(loaded[key], value), key


def test_samplers_are_where_sd15_has_them(tiny):
    """diffusers reads an upsampler at index 1 and 2 alike; the tools that people use do not."""
    keys = load_file(tiny("sd15").file).keys()
    found = {
        key.removeprefix("model.diffusion_model.")
        for key in keys
        if key.startswith("model.diffusion_model.") and key.endswith((".op.weight", ".conv.weight"))
    }
    assert found == {
        "input_blocks.3.0.op.weight",
        "input_blocks.6.0.op.weight",
        "input_blocks.9.0.op.weight",
        "output_blocks.2.1.conv.weight",
        "output_blocks.5.2.conv.weight",
        "output_blocks.8.2.conv.weight",
    }
    # The key by which diffusers knows an SD 1 file.
    assert "model.diffusion_model.output_blocks.11.0.skip_connection.weight" in keys


@pytest.mark.parametrize("name", NAMES)
def test_ldm_keys_round_trip(tiny, name):
    base = tiny(name)
    tensors = to_ldm(base.unet.state_dict(), base.vae.state_dict(), base.text_encoder.state_dict())
    parts = from_ldm({**tensors, "v_pred": torch.empty(0)})
    assert parts.rest.keys() == {"v_pred"}
    again = to_ldm(parts.unet, parts.vae, parts.text)
    assert again.keys() == tensors.keys()
    assert parts.unet.keys() == base.unet.state_dict().keys()
    assert parts.vae.keys() == base.vae.state_dict().keys()
    for key, value in base.vae.state_dict().items():
        assert torch.equal(parts.vae[key], value), key


@pytest.mark.parametrize("name", NAMES)
def test_merge_equals_diffusers_fuse_lora(tiny, lora, tmp_path, name):
    base = tiny(name)
    path = lora(base, rank=3, alpha=2.0)
    report = merge(base.file, [Addend(path, 0.7)], tmp_path / "merged.safetensors")
    merged = state(load(tmp_path / "merged.safetensors", base.folder))

    oracle = load(base.file, base.folder, torch.float32)
    oracle.load_lora_weights(path)
    oracle.fuse_lora(lora_scale=0.7)
    oracle.unload_lora_weights()
    expected = {key: value.half() for key, value in state(oracle).items()}

    assert merged.keys() == expected.keys()
    distances = {key: ulps(merged[key], expected[key]) for key in merged}
    assert max(int(d.max()) for d in distances.values()) <= 1
    elements = sum(d.numel() for d in distances.values())
    assert sum(int((d > 0).sum()) for d in distances.values()) <= elements / 1000
    # The comparison is of two models that did change, all over.
    changed = [key for key, value in state(base).items() if not torch.equal(value, merged[key])]
    assert len(changed) == len(report.matched) == len(load_file(path)) // 3


def test_folder_equals_single_file(base, lora, tmp_path):
    path = lora(base)
    copy = tmp_path / "base"
    shutil.copytree(base.folder, copy)
    (copy / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"stale")
    merge(base.file, [Addend(path, 0.7)], tmp_path / "one.safetensors")
    report = merge(copy, [Addend(path, 0.7)], tmp_path / "merged")
    single = state(load(tmp_path / "one.safetensors", base.folder))
    folder = state(
        StableDiffusionPipeline.from_pretrained(
            tmp_path / "merged", local_files_only=True, dtype=torch.float16
        )
    )
    assert single.keys() == folder.keys()
    for key, value in single.items():
        assert torch.equal(folder[key], value), key
    assert {row.key.partition(":")[0] for row in report.matched} == {
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    names = {
        p.relative_to(tmp_path / "merged").as_posix() for p in (tmp_path / "merged").rglob("*")
    }
    kept = {p.relative_to(base.folder).as_posix() for p in base.folder.rglob("*")}
    assert names == kept
    # Once more over its own output: an earlier output is replaced.
    merge(copy, [Addend(path, 0.7)], tmp_path / "merged")
    assert not list(tmp_path.glob(".*"))


def test_old_single_file_without_text_model(base, lora, tmp_path):
    """Some old files name the text encoder without `text_model.`."""
    renamed = {
        key.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."): v
        for key, v in load_file(base.file).items()
    }
    save_file(renamed, tmp_path / "old.safetensors")
    path = lora(base)
    old = merge(tmp_path / "old.safetensors", [Addend(path, 1.0)], tmp_path / "a.safetensors")
    new = merge(base.file, [Addend(path, 1.0)], tmp_path / "b.safetensors")
    assert len(old.matched) == len(new.matched)
    assert old.cast_loss == pytest.approx(new.cast_loss)
