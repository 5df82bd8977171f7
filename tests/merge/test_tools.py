"""resize, convert, concat over layouts, info: what they keep, and what they refuse."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from merge import Addend, MergeError, Strength, concat, merge
from merge.convert import convert
from merge.info import info
from merge.resize import resize
from merge.thin import Cut

CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
LINEAR = "lora_unet_mid_block_resnets_1_time_emb_proj"
POINT = "lora_unet_mid_block_attentions_0_proj_in"
"""A 1x1 convolution."""


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def deltas(path):
    """Every module's delta (out, in·h·w) of a file in kohya's layout, by other code, float64."""
    tensors = load_file(path)
    found = {}
    for key, down in tensors.items():
        name, _, part = key.partition(".")
        if part == "lora_down.weight":
            up = tensors[f"{name}.lora_up.weight"].double().numpy()
            rank = down.shape[0]
            alpha = float(tensors.get(f"{name}.alpha", rank))
            found[name] = (
                alpha
                / rank
                * np.einsum(
                    "or,ri->oi", up.reshape(-1, rank), down.double().numpy().reshape(rank, -1)
                )
            )
    return found


def with_metadata(path, **said):
    save_file(load_file(path), path, {key.replace("__", "."): said[key] for key in said})
    return path


def fused(load, state, base, path):
    """The weights of a pipeline with a LoRA, as diffusers loads and fuses it, in float32."""
    pipeline = load(base, dtype=torch.float32)
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return state(pipeline)


def by_hand(base, state, path):
    """The weights of a Tiny with the deltas of a kohya file in diffusers' block names.

    diffusers itself ignores the alphas of such a file where they differ from layer to layer.
    """
    first = "lora_te_" if base.text_encoder_2 is None else "lora_te1_"
    prefixes = {"unet": "lora_unet_", "text_encoder": first, "text_encoder_2": "lora_te2_"}
    found, moved = deltas(path), {}
    for key, value in state(base).items():
        component, _, module = key.removesuffix(".weight").partition(".")
        text = "" if component == "unet" else "text_model_"
        name = f"{prefixes.get(component)}{text}{module.removeprefix('text_model.')}"
        delta = found.pop(name.replace(".", "_"), None) if key.endswith(".weight") else None
        moved[key] = value.float()
        if delta is not None:
            moved[key] = moved[key] + torch.from_numpy(delta).float().view(value.shape)
    assert not found
    return moved


def assert_same_weights(one, two, base_state, atol=1e-6):
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.allclose(value.float(), two[key].float(), rtol=0, atol=atol), key
    moved = [k for k, v in one.items() if not torch.allclose(v.float(), base_state[k].float())]
    assert len(moved) > 20


def test_resize_keeps_the_best_of_its_rank(base, lora, tmp_path):
    path, out = lora(base, rank=6, alpha=3.0), tmp_path / "small.safetensors"
    report = resize(path, out, Cut(rank=2), conv_rank=4)
    before, after, tensors = deltas(path), deltas(out), load_file(out)
    assert before.keys() == after.keys() == {row.name for row in report.layers}
    kept = total = 0.0
    for row in report.layers:
        spatial = load_file(path)[f"{row.name}.lora_down.weight"].shape[2:] == (3, 3)
        values = np.linalg.svd(before[row.name], compute_uv=False)
        rank = 4 if spatial else 2
        assert (row.before, row.rank) == (6, min(rank, len(values)))
        lost = np.linalg.norm(before[row.name] - after[row.name])
        assert lost == pytest.approx(np.linalg.norm(values[rank:]), abs=1e-5)
        assert row.norm == pytest.approx(np.linalg.norm(values))
        assert row.share == pytest.approx(np.linalg.norm(values[:rank]) / row.norm)
        assert tensors[f"{row.name}.alpha"] == tensors[f"{row.name}.lora_down.weight"].shape[0]
        kept, total = kept + (row.share * row.norm) ** 2, total + row.norm**2
    assert report.share == pytest.approx(math.sqrt(kept / total)) and 0.5 < report.share < 0.99
    assert report.size == out.stat().st_size < path.stat().st_size
    # 4-d stays 4-d, and 2-d stays 2-d, as other programs expect of the layer.
    for name, dims in ((CONV, 4), (POINT, 4), (LINEAR, 2)):
        assert tensors[f"{name}.lora_down.weight"].ndim == dims
        assert tensors[f"{name}.lora_up.weight"].ndim == dims


def test_resize_to_more_than_there_is_changes_nothing(base, lora, tmp_path):
    path, out = lora(base, rank=3), tmp_path / "same.safetensors"
    report = resize(path, out, Cut(rank=50))
    assert all(row.rank == row.before == 3 and row.share == 1.0 for row in report.layers)
    before, after = deltas(path), deltas(out)
    assert all(np.allclose(before[name], after[name], atol=1e-7) for name in before)


@pytest.mark.parametrize(("settings", "norm"), [({"energy": 0.9}, 2), ({"ratio": 2.0}, None)])
def test_resize_chooses_each_layers_rank(base, lora, tmp_path, settings, norm):
    path, out = lora(base, rank=6), tmp_path / "small.safetensors"
    report = resize(path, out, Cut(**settings))
    before = deltas(path)
    for row in report.layers:
        values = np.linalg.svd(before[row.name], compute_uv=False)[:6]
        if norm is None:
            wanted = int((values >= values[0] / 2.0).sum())
        else:
            shares = np.cumsum(values**2) / (values**2).sum()
            wanted = int(np.argmax(shares >= 0.9)) + 1
        assert row.rank == wanted
    assert len({row.rank for row in report.layers}) > 1
    assert metadata(out)["ss_network_dim"] == metadata(out)["ss_network_alpha"] == "Dynamic"


def test_resize_says_what_it_did(base, lora, tmp_path):
    path = with_metadata(
        lora(base, rank=6),
        ss_network_dim="6",
        ss_network_args='{"conv_dim": "6", "algo": "x"}',
        note="kept",
        sshs_model_hash="of other bytes",
        urushi__lineage='{"mine": 1}',
    )
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    report = resize(path, one, Cut(rank=2), conv_rank=3, metadata={"added": "yes"})
    found = metadata(one)
    assert (found["note"], found["added"], "sshs_model_hash" in found) == ("kept", "yes", False)
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("2", "2")
    arguments = json.loads(found["ss_network_args"])
    assert arguments == {"conv_dim": "3", "conv_alpha": "3", "algo": "x"}
    assert json.loads(found["urushi.lineage"]) == {
        "lora": {"blake3": report.lora, "lineage": {"mine": 1}},
        "resized": {"rank": 2, "conv_rank": 3},
    }
    resize(path, two, Cut(rank=2), conv_rank=3, metadata={"added": "yes"})
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(("dtype", "wanted"), [(None, torch.bfloat16), ("fp16", torch.float16)])
def test_resize_keeps_the_dtype_or_takes_another(base, lora, tmp_path, dtype, wanted):
    path, out = lora(base), tmp_path / "small.safetensors"
    save_file({key: value.bfloat16() for key, value in load_file(path).items()}, path)
    resize(path, out, Cut(rank=2), dtype=dtype)
    assert {value.dtype for value in load_file(out).values()} == {wanted}


@pytest.mark.parametrize("name", ["tiny", "sdxl"])
def test_resized_by_energy_in_diffusers_layout_loads_in_diffusers(
    tiny, lora, load, state, tmp_path, name
):
    """Ranks of their own in each layer: diffusers must give each its alpha."""
    base = tiny(name)
    path = lora(base, rank=6)
    small, spelled = tmp_path / "small.safetensors", tmp_path / "spelled.safetensors"
    resize(path, small, Cut(energy=0.9))
    convert(path, spelled, "diffusers", family=FAMILIES[name])
    resize(spelled, tmp_path / "both.safetensors", Cut(energy=0.9))
    assert all(".lora_" in key for key in load_file(tmp_path / "both.safetensors"))
    theirs = fused(load, state, base, tmp_path / "both.safetensors")
    assert_same_weights(by_hand(base, state, small), theirs, state(base))


FAMILIES = {"tiny": "sd15", "sd15": "sd15", "sdxl": "sdxl"}


@pytest.mark.parametrize("name", ["tiny", "sdxl"])
def test_converted_is_the_same_lora_to_diffusers(tiny, lora, load, state, tmp_path, name):
    base = tiny(name)
    path, out = lora(base, rank=4, alpha=1.5), tmp_path / "converted.safetensors"
    report = convert(path, out, "diffusers", family=FAMILIES[name])
    keys = load_file(out).keys()
    assert report.names[POINT] == "unet.mid_block.attentions.0.proj_in"
    assert all(k.endswith((".lora_A.weight", ".lora_B.weight")) for k in keys)
    assert ("text_encoder_2" in {k.partition(".")[0] for k in keys}) == (name == "sdxl")
    one, two = fused(load, state, base, path), fused(load, state, base, out)
    assert_same_weights(one, two, state(base), atol=0)
    # And to us: the alpha is in the metadata.
    merge(base.file, [Addend(path, 1.0)], tmp_path / "merged.safetensors", dtype="float32")
    merge(base.file, [Addend(out, 1.0)], tmp_path / "again.safetensors", dtype="float32")
    again, merged = (load_file(tmp_path / f"{n}.safetensors") for n in ("again", "merged"))
    assert all(torch.equal(merged[key], value) for key, value in again.items())


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_convert_round_trip_gives_every_tensor_back(tiny, lora, tmp_path, name, dtype):
    base = tiny(name)
    path = lora(base, rank=3, alpha=0.1, every=5)
    if name == "sdxl":
        # kohya's own spelling of SDXL is sgm's, and this is how it gets there.
        convert(path, tmp_path / "sgm.safetensors", "kohya", family="sdxl")
        path = tmp_path / "sgm.safetensors"
    tensors = {key: value.to(dtype) for key, value in load_file(path).items()}
    tensors[next(key for key in tensors if key.endswith("alpha"))] = torch.tensor(7.0, dtype=dtype)
    save_file(tensors, path, {"note": "kept"})
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    convert(path, there, "diffusers", family=FAMILIES[name])
    report = convert(there, back, "kohya", family=FAMILIES[name])
    after = load_file(back)
    assert after.keys() == tensors.keys()
    for key, value in tensors.items():
        assert after[key].dtype == value.dtype
        ours, theirs = (t.reshape(-1).view(torch.uint8) for t in (after[key], value))
        assert torch.equal(ours, theirs), key
    found = metadata(back)
    assert found["note"] == "kept" and "lora_adapter_metadata" not in found
    told = json.loads(found["urushi.lineage"])
    assert (told["converted"], told["lora"]["lineage"]["converted"]) == ("kohya", "diffusers")
    assert report.size == back.stat().st_size


def test_sdxl_in_diffusers_names_is_written_in_sgms(tiny, lora, tmp_path):
    """What kohya's own programs look for; the factors follow their layers."""
    base = tiny("sdxl")
    path, out = lora(base, every=3), tmp_path / "out.safetensors"
    report = convert(path, out, "kohya", family="sdxl")
    before, after = load_file(path), load_file(out)
    by_hand = {
        "lora_unet_down_blocks_1_attentions_0_proj_in": "lora_unet_input_blocks_4_1_proj_in",
        "lora_unet_mid_block_resnets_0_conv1": "lora_unet_middle_block_0_in_layers_2",
        "lora_unet_down_blocks_0_downsamplers_0_conv": "lora_unet_input_blocks_3_0_op",
    }
    seen = [old for old in by_hand if old in report.names]
    assert seen
    for old, new in report.names.items():
        assert by_hand.get(old, new) == new
        for part in ("lora_up.weight", "lora_down.weight"):
            assert torch.equal(before[f"{old}.{part}"], after[f"{new}.{part}"])
    assert not any("down_blocks" in key for key in after)
    merge(base.file, [Addend(path, 1.0)], tmp_path / "a.safetensors")
    merge(base.file, [Addend(out, 1.0)], tmp_path / "b.safetensors")
    one, two = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_concat_of_two_layouts_is_their_sum(base, lora, tmp_path):
    first, second = lora(base, "a", rank=2, seed=1), lora(base, "b", rank=3, seed=2)
    spelled, total = tmp_path / "spelled.safetensors", tmp_path / "sum.safetensors"
    convert(second, spelled, "diffusers", family="sd15")
    hashes = concat([Addend(first, 0.5), Addend(spelled, -0.25)], total)
    assert len(hashes) == 2 and len({key.partition(".")[0] for key in load_file(total)}) == len(
        deltas(first)
    )
    one, two, both = deltas(first), deltas(second), deltas(total)
    for name, delta in both.items():
        assert np.allclose(delta, 0.5 * one[name] - 0.25 * two[name], atol=1e-7), name
    # In the other order the names come from a file that is not kohya's.
    again = tmp_path / "again.safetensors"
    concat([Addend(spelled, -0.25), Addend(first, 0.5)], again)
    assert deltas(again).keys() == both.keys()
    assert load_file(again)[f"{CONV}.alpha"] == 5.0


def test_concat_takes_strengths_by_network_and_block(tiny, lora, tmp_path):
    base = tiny("sd15")
    first, second = lora(base, "a", rank=2, seed=1), lora(base, "b", rank=3, seed=2)
    strength = Strength(unet=2.0, te1=0.5, blocks={"IN01": 0.25, "M00": 0.0})
    total = tmp_path / "sum.safetensors"
    concat([Addend(first, strength), Addend(second, 1.0)], total)
    one, two, both = deltas(first), deltas(second), deltas(total)
    wanted = {
        CONV: 0.5,
        "lora_unet_mid_block_resnets_0_conv1": 0.0,
        "lora_unet_up_blocks_0_resnets_0_conv1": 2.0,
        "lora_te_text_model_encoder_layers_0_mlp_fc1": 0.5,
    }
    for name, factor in wanted.items():
        assert np.allclose(both[name], factor * one[name] + two[name], atol=1e-7), name
    assert load_file(total)["lora_unet_mid_block_resnets_0_conv1.alpha"] == 3.0
    told = json.loads(metadata(total)["urushi.lineage"])["loras"]
    assert told[0]["strength"]["blocks"] == {"IN01": 0.25, "M00": 0.0}
    assert told[1]["strength"] == 1.0


def test_concat_refuses_two_families(tiny, lora, tmp_path):
    one, two = lora(tiny("sdxl"), "xl", every=4), lora(tiny("sd15"), "old", every=4)
    with pytest.raises(MergeError, match="two families"):
        concat([Addend(one, 1.0), Addend(two, 1.0)], tmp_path / "sum.safetensors")


def test_info_counts_and_measures(base, lora, tmp_path):
    path = with_metadata(lora(base, rank=3, alpha=2.0), ss_output_name="coat", ss_tag_frequency="x")
    tensors = load_file(path)
    tensors[f"{LINEAR}.alpha"] = torch.tensor(1.5)
    save_file(tensors, path, metadata(path))
    found, before = info(path, largest=3), deltas(path)
    assert (found.writer, found.family, found.size) == ("kohya", "sd15", path.stat().st_size)
    text = [name for name in before if name.startswith("lora_te")]
    assert found.networks == {"unet": len(before) - len(text), "te1": len(text)}
    assert found.ranks == {3: len(before)} and found.alphas == {1.5: 1, 2.0: len(before) - 1}
    assert found.forms == {"lora": len(before)} and found.dtypes == {"F32": 2 * len(before)}
    kinds = {
        kernel: sum(
            value.shape[2:] == size
            for key, value in tensors.items()
            if key.endswith("lora_down.weight")
        )
        for kernel, size in (("3x3", (3, 3)), ("1x1", (1, 1)), ("linear", ()))
    }
    assert found.kinds == kinds and all(kinds.values())
    norm = math.sqrt(sum(np.linalg.norm(before[name]) ** 2 for name in text))
    assert found.norms["te1"] == pytest.approx(norm, rel=1e-6)
    rms = {name: np.linalg.norm(delta) / math.sqrt(delta.size) for name, delta in before.items()}
    wanted = sorted(rms, key=lambda name: -rms[name])[:3]
    assert [name for name, _ in found.largest] == wanted
    assert found.largest[0][1] == pytest.approx(rms[wanted[0]], rel=1e-6)
    assert found.metadata == {"ss_output_name": "coat"}


def test_info_describes_what_the_other_tools_refuse(base, lora):
    path = lora(base)
    tensors = load_file(path)
    tensors[f"{LINEAR}.dora_scale"] = torch.ones(tensors[f"{LINEAR}.lora_up.weight"].shape[0], 1)
    save_file(tensors, path)
    found = info(path)
    count = len(deltas(path))
    assert sum(found.forms.values()) == count and found.forms["lora"] == count - 1
    assert sum(found.alphas.values()) == count - 1


def dora(tensors):
    rows = tensors[f"{LINEAR}.lora_up.weight"].shape[0]
    return {**tensors, f"{LINEAR}.dora_scale": torch.ones(rows, 1)}


def loha(tensors):
    up = tensors[f"{LINEAR}.lora_up.weight"]
    down = tensors[f"{LINEAR}.lora_down.weight"]
    kept = {key: value for key, value in tensors.items() if not key.startswith(LINEAR)}
    parts = {"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": up * 2, "hada_w2_b": down * 3}
    return {**kept, **{f"{LINEAR}.{part}": value.clone() for part, value in parts.items()}}


def difference(tensors):
    up, down = tensors[f"{LINEAR}.lora_up.weight"], tensors[f"{LINEAR}.lora_down.weight"]
    kept = {key: value for key, value in tensors.items() if not key.startswith(LINEAR)}
    return {**kept, f"{LINEAR}.diff": up @ down}


def not_finite(tensors):
    tensors[f"{LINEAR}.lora_up.weight"][0, 0] = math.nan
    return tensors


TOOLS = {
    "resize": lambda path, out: resize(path, out, Cut(rank=1)),
    "convert": lambda path, out: convert(path, out, "diffusers", family="sd15"),
    "concat": lambda path, out: concat([Addend(path, 1.0)], out),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    ("change", "said"),
    [(dora, "DoRA"), (loha, "LoHa"), (difference, "difference"), (not_finite, "NaN")],
)
def test_forms_without_two_factors_are_refused_by_name(base, lora, tmp_path, tool, change, said):
    path, out = lora(base), tmp_path / "out.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(MergeError, match=said) as caught:
        TOOLS[tool](path, out)
    assert LINEAR in str(caught.value) and caught.value.exit_code == 2
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("tool", TOOLS)
def test_an_input_is_never_the_output(base, lora, tool):
    path = lora(base)
    before = path.read_bytes()
    with pytest.raises(MergeError, match="overwrite its input"):
        TOOLS[tool](path, path)
    assert path.read_bytes() == before


def test_resize_refuses_numbers_that_do_not_fit(base, lora, tmp_path):
    path, out = lora(base), tmp_path / "out.safetensors"
    tensors = {key: value * 1e6 for key, value in load_file(path).items()}
    save_file(tensors, path)
    with pytest.raises(MergeError, match="does not fit into F16"):
        resize(path, out, Cut(rank=2), dtype="float16")
    assert not out.exists()


def test_convert_asks_for_a_family_that_nothing_says(base, lora, tmp_path):
    path, out = lora(base, text=False), tmp_path / "out.safetensors"
    with pytest.raises(MergeError, match="name the family"):
        convert(path, out, "kohya")
    with pytest.raises(MergeError, match="is not one of kohya, diffusers"):
        convert(path, out, "webui", family="sd15")
    with_metadata(path, ss_base_model_version="sd_v1")
    assert convert(path, out, "kohya").family == "sd15"
    with_metadata(path, modelspec__architecture="stable-diffusion-xl-v1-base/lora")
    assert convert(path, out, "kohya").family == "sdxl"


def test_modules_that_nobody_knows_have_no_other_spelling(base, lora, tmp_path):
    path, out = lora(base), tmp_path / "out.safetensors"
    tensors = load_file(path)
    for part in ("lora_up.weight", "lora_down.weight"):
        tensors[f"lora_unet_strange_place.{part}"] = tensors[f"{LINEAR}.{part}"].clone()
    save_file(tensors, path)
    with pytest.raises(MergeError, match="lora_unet_strange_place cannot be named"):
        convert(path, out, "diffusers", family="sd15")
    resize(path, out, Cut(rank=1))
    assert "lora_unet_strange_place.alpha" in load_file(out)


def test_alpha_is_never_rounded(tmp_path):
    """bf16 has a step of 2 above 256, so that an alpha of 257 would become 256."""
    generator = torch.Generator().manual_seed(0)
    path, out = tmp_path / "lora.safetensors", tmp_path / "small.safetensors"
    up, down = (torch.randn(300, 300, generator=generator).bfloat16() for _ in range(2))
    save_file({f"{LINEAR}.lora_up.weight": up, f"{LINEAR}.lora_down.weight": down}, path)
    resize(path, out, Cut(rank=257))
    tensors = load_file(out)
    assert tensors[f"{LINEAR}.alpha"] == tensors[f"{LINEAR}.lora_down.weight"].shape[0] == 257
    assert tensors[f"{LINEAR}.lora_up.weight"].dtype == torch.bfloat16


def test_a_place_that_cannot_be_written(base, lora, tmp_path):
    path, file = lora(base), tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(MergeError, match="cannot be written") as caught:
        resize(path, file / "out.safetensors", Cut(rank=1))
    assert caught.value.exit_code == 2
