"""Against code that is not ours: diffusers' loaders and its own fusing of LoRAs."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from merge import Addend, merge

NAMES = ("tiny", "sd15", "odd", "sdxl", "sdxl_odd")


def ulps(a, b):
    """Distance of two fp16 tensors in units in the last place."""

    def ordered(x):
        bits = x.contiguous().view(torch.int16).to(torch.int32)
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(a) - ordered(b)).abs()


@pytest.fixture
def fused(load, state):
    """All weights of a base with a LoRA fused by diffusers in float32, cast to fp16."""

    def fuse(base, path, strength):
        pipeline = load(base, dtype=torch.float32)
        pipeline.load_lora_weights(path)
        components = ["unet", "text_encoder", "text_encoder_2"]
        here = [name for name in components if hasattr(pipeline, name)]
        pipeline.fuse_lora(components=here, lora_scale=strength)
        pipeline.unload_lora_weights()
        return {key: value.half() for key, value in state(pipeline).items()}

    return fuse


@pytest.fixture
def check(load, state, fused, tmp_path):
    """Merges a LoRA and compares every tensor with diffusers' own; returns what differs."""

    def compare(base, path, count, strength=0.7):
        report = merge(base.file, [Addend(path, strength)], tmp_path / "merged.safetensors")
        merged = state(load(base, tmp_path / "merged.safetensors"))
        expected = fused(base, path, strength)
        assert merged.keys() == expected.keys()
        distances = {key: ulps(merged[key], expected[key]) for key in merged}
        assert max(int(d.max()) for d in distances.values()) <= 1
        elements = sum(d.numel() for d in distances.values())
        assert sum(int((d > 0).sum()) for d in distances.values()) <= elements / 1000
        # The comparison is of two models that did change, everywhere where they should.
        changed = {k for k, value in state(base).items() if not torch.equal(value, merged[k])}
        assert len(changed) == count
        assert not report.unmatched
        return changed

    return compare


@pytest.mark.parametrize(
    ("name", "convs"), [*((name, True) for name in NAMES), ("sd15", False), ("sdxl", False)]
)
def test_merge_equals_diffusers_fuse_lora(tiny, lora, check, name, convs):
    base = tiny(name)
    path = lora(base, rank=3, alpha=2.0, convs=convs)
    changed = check(base, path, len(load_file(path)) // 3)
    assert any("resnets" in key for key in changed)
    components = {key.partition(".")[0] for key in changed}
    assert components == {"unet", "text_encoder"} | (
        {"text_encoder_2"} if name.startswith("sdxl") else set()
    )


def test_sgm_names_equal_diffusers_names(tiny, lora, sgm, check, tmp_path):
    """As kohya's trainer writes SDXL LoRAs, and as others do: the same numbers either way."""
    base = tiny("sdxl")
    paths = [lora(base, "sgm", names=sgm(base).get), lora(base, "diffusers")]
    assert any("_output_blocks_2_1_" in key for key in load_file(paths[0]))
    check(base, paths[0], len(load_file(paths[0])) // 3)
    outs = [tmp_path / f"{path.stem}.out.safetensors" for path in paths]
    for path, out in zip(paths, outs, strict=True):
        merge(base.file, [Addend(path, 0.7)], out)
    first, second = map(load_file, outs)
    assert all(torch.equal(first[key], value) for key, value in second.items())


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_lora_that_diffusers_wrote(tiny, load, check, tmp_path, name):
    """diffusers' own layout: unet.….lora_A.weight, text_encoder.…, text_encoder_2.…"""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    base = tiny(name)
    pipeline = load(base, dtype=torch.float32)
    torch.manual_seed(0)
    targets = {
        "unet": ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "time_emb_proj"],
        "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
        "text_encoder_2": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    }
    layers, count = {}, 0
    for component, names in targets.items():
        model = getattr(pipeline, component, None)
        if model is None:
            continue
        model.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=names))
        for key, value in model.named_parameters():
            if "lora_B" in key:
                value.data.normal_(std=0.02)
                count += 1
        layers[f"{component}_lora_layers"] = get_peft_model_state_dict(model)
    pipeline.save_lora_weights(tmp_path, **layers)
    check(base, tmp_path / "pytorch_lora_weights.safetensors", count)


def two_factors(name, rows, columns, seed=0):
    """A plain LoRA of one layer, alpha = rank, and its delta at strength 1."""
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(rows, 2, generator=generator)
    down = torch.randn(2, columns, generator=generator)
    return {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}, up @ down


def test_thirds_of_openclip(tiny, load, state, tmp_path):
    """A delta for one of query, key and value lands on it, and on nothing beside it."""
    base = tiny("sdxl")
    layers = {
        "q_proj": (0, "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"),
        "v_proj": (1, "text_encoder_2.text_model.encoder.layers.1.self_attn.v_proj"),
    }
    deltas = {}
    for layer, (number, name) in layers.items():
        factors, delta = two_factors(name, 24, 24, seed=number)
        save_file(factors, tmp_path / f"{layer}.safetensors")
        deltas[f"text_encoder_2.text_model.encoder.layers.{number}.self_attn.{layer}.weight"] = (
            delta
        )
    addends = [Addend(tmp_path / f"{layer}.safetensors", 0.5) for layer in layers]
    report = merge(base.file, addends, tmp_path / "out.safetensors")
    merged, before = state(load(base, tmp_path / "out.safetensors")), state(base)
    for key, value in before.items():
        expected = value if key not in deltas else (value.float() + 0.5 * deltas[key]).half()
        assert torch.equal(merged[key], expected), key
    prefix = "conditioner.embedders.1.model.transformer.resblocks"
    assert {row.key for row in report.matched} == {
        f"{prefix}.0.attn.in_proj_weight[0:24]",
        f"{prefix}.1.attn.in_proj_weight[48:72]",
    }


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_transposed_projection(tiny, load, state, tmp_path, kind):
    base = tiny("sdxl")
    factors, delta = two_factors("lora_te2_text_projection", 24, 24)
    save_file(factors, tmp_path / "lora.safetensors")
    out = tmp_path / ("out.safetensors" if kind == "file" else "out")
    merge(getattr(base, kind), [Addend(tmp_path / "lora.safetensors", 0.5)], out)
    merged = state(load(base, out) if kind == "file" else opened(out))
    key = "text_encoder_2.text_projection.weight"
    for name, value in state(base).items():
        expected = value if name != key else (value.float() + 0.5 * delta).half()
        assert torch.equal(merged[name], expected), name


def opened(folder, **settings):
    return DiffusionPipeline.from_pretrained(
        folder, local_files_only=True, dtype=torch.float16, **settings
    )


@pytest.mark.parametrize("name", ["tiny", "sdxl"])
def test_folder_equals_single_file(tiny, lora, load, state, tmp_path, name):
    base = tiny(name)
    path = lora(base)
    copy = tmp_path / "base"
    shutil.copytree(base.folder, copy)
    (copy / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"stale")
    merge(base.file, [Addend(path, 0.7)], tmp_path / "one.safetensors")
    report = merge(copy, [Addend(path, 0.7)], tmp_path / "merged")
    single = state(load(base, tmp_path / "one.safetensors"))
    folder = state(opened(tmp_path / "merged"))
    assert single.keys() == folder.keys()
    for key, value in single.items():
        assert torch.equal(folder[key], value), key
    encoders = ["text_encoder", "text_encoder_2"][: 1 if name == "tiny" else 2]
    assert {row.key.partition(":")[0] for row in report.matched} == {
        "unet/diffusion_pytorch_model.safetensors",
        *(f"{encoder}/model.safetensors" for encoder in encoders),
    }
    names = {
        p.relative_to(tmp_path / "merged").as_posix() for p in (tmp_path / "merged").rglob("*")
    }
    kept = {p.relative_to(base.folder).as_posix() for p in base.folder.rglob("*")}
    assert names == kept
    # Once more over its own output: an earlier output is replaced.
    merge(copy, [Addend(path, 0.7)], tmp_path / "merged")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_and_variants_are_loaded_as_before(tiny, lora, load, state, tmp_path, variant):
    """Folders that diffusers itself splits or names; what it loads afterwards is the merge."""
    base = tiny("sdxl")
    folder, out, path = tmp_path / "base", tmp_path / "out", lora(base)
    opened(base.folder).save_pretrained(folder, variant=variant, max_shard_size="150KB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    merge(folder, [Addend(path, 0.7)], out)
    merge(base.file, [Addend(path, 0.7)], tmp_path / "one.safetensors")
    expected = state(load(base, tmp_path / "one.safetensors"))
    found = state(opened(out, variant=variant))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    files = {p.relative_to(out).as_posix() for p in out.rglob("*")}
    assert files == {p.relative_to(folder).as_posix() for p in folder.rglob("*")}
    for index in out.rglob("*.index*.json"):
        places = json.loads(index.read_text())["weight_map"]
        assert all(key in load_file(index.parent / name) for key, name in places.items())


def test_ckpt_equals_safetensors(tiny, lora, tmp_path):
    base = tiny("sdxl")
    tensors = {key: tensor.clone() for key, tensor in load_file(base.file).items()}
    torch.save({"state_dict": tensors}, tmp_path / "base.ckpt")
    path = lora(base)
    merge(tmp_path / "base.ckpt", [Addend(path, 0.7)], tmp_path / "a.safetensors")
    merge(base.file, [Addend(path, 0.7)], tmp_path / "b.safetensors")
    found, expected = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


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
