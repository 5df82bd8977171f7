"""The sum, recomputed by other code; what a cast loses; what must not change a byte."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from merge import Addend, MergeError, concat, merge
from merge.arithmetic import Sums, add_terms, exact_products
from merge.delta import Term
from merge.forms import LowRank
from merge.sizes import of_terms

UNET = "model.diffusion_model."

# Four layers of SD 1.5's tiny relative, by hand: what kohya calls them, and where they are in ldm.
PLACES = {
    "lora_unet_down_blocks_0_resnets_0_conv1": UNET + "input_blocks.1.0.in_layers.2",
    "lora_unet_down_blocks_1_attentions_0_proj_in": UNET + "input_blocks.3.1.proj_in",
    "lora_unet_down_blocks_0_downsamplers_0_conv": UNET + "input_blocks.2.0.op",
    "lora_unet_mid_block_resnets_1_time_emb_proj": UNET + "middle_block.2.emb_layers.1",
    "lora_unet_up_blocks_0_resnets_1_conv_shortcut": UNET + "output_blocks.1.0.skip_connection",
    "lora_unet_up_blocks_0_upsamplers_0_conv": UNET + "output_blocks.1.2.conv",
    "lora_unet_up_blocks_1_attentions_1_transformer_blocks_0_ff_net_0_proj": UNET
    + "output_blocks.3.1.transformer_blocks.0.ff.net.0.proj",
    "lora_te_text_model_encoder_layers_1_self_attn_out_proj": "cond_stage_model.transformer."
    "text_model.encoder.layers.1.self_attn.out_proj",
    "lora_te_text_model_encoder_layers_0_mlp_fc1": "cond_stage_model.transformer.text_model."
    "encoder.layers.0.mlp.fc1",
}


def raw(path):
    """Every tensor's bytes, without going through our reader."""
    with safe_open(path, "numpy") as file:
        return {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118


def by_hand(base, loras, place, name):
    """float32 in numpy, through einsum over the rank instead of a product of matrices."""
    weight = base[f"{place}.weight"].numpy().astype(np.float32)
    for tensors, strength in loras:
        up = tensors[f"{name}.lora_up.weight"].numpy()
        down = tensors[f"{name}.lora_down.weight"].numpy()
        rank = down.shape[0]
        alpha = float(tensors.get(f"{name}.alpha", rank))
        delta = np.einsum("or,ri->oi", up.reshape(-1, rank), down.reshape(rank, -1))
        weight = weight + np.float32(strength * alpha / rank) * delta.reshape(weight.shape)
    return weight.astype(np.float16)


def test_named_layers_recomputed_by_hand(base, lora, tmp_path):
    paths = [lora(base, "a", seed=1), lora(base, "b", rank=5, alpha=None, seed=2)]
    strengths = (0.8, -0.3)
    out = tmp_path / "out.safetensors"
    report = merge(base.file, [Addend(p, s) for p, s in zip(paths, strengths, strict=True)], out)
    before, after = load_file(base.file), load_file(out)
    loras = [(load_file(p), s) for p, s in zip(paths, strengths, strict=True)]
    equal = elements = 0
    for name, place in PLACES.items():
        expected = by_hand(before, loras, place, name)
        got = after[f"{place}.weight"].numpy()
        assert np.abs(expected.view(np.int16).astype(int) - got.view(np.int16)).max() <= 1, name
        assert not np.array_equal(got, before[f"{place}.weight"].numpy())
        equal += int((expected == got).sum())
        elements += got.size
    assert equal / elements >= 0.999
    assert {f"{place}.weight" for place in PLACES.values()} <= {row.key for row in report.matched}
    untouched = before.keys() - {row.key for row in report.matched}
    old, new = raw(base.file), raw(out)
    assert all(old[key] == new[key] for key in untouched)
    assert old.keys() == new.keys()


def added(weight, terms, first, dtype):
    """The rows with the terms added, in a dtype, and the sums of squares."""
    result = torch.empty_like(weight, dtype=dtype)
    return result, add_terms(weight, terms, first, result)


@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 9),
    inner=st.integers(1, 9),
    kernel=st.sampled_from([1, 3]),
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    strengths=st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    seed=st.integers(0, 2**16),
)
def test_delta_route_equals_adapter_route(out, inner, kernel, ranks, strengths, dtype, seed):
    """A layer with the merged weight computes what the layer plus its adapters computes."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inner * kernel**2, generator=generator).to(dtype)
    picture = torch.randn(1, inner, 5, 5, generator=generator, dtype=torch.float64)
    conv = torch.nn.functional.conv2d
    terms = []
    expected = conv(picture, weight.double().view(out, inner, kernel, kernel))
    for rank, strength in zip(ranks, strengths, strict=False):
        up = torch.randn(out, rank, generator=generator)
        down = torch.randn(rank, inner * kernel**2, generator=generator)
        terms.append(Term(LowRank(up, down, 1.0), strength, last=False))
        hidden = conv(picture, down.double().view(rank, inner, kernel, kernel))
        expected = expected + strength * conv(hidden, up.double().view(out, rank, 1, 1))
    merged, _ = added(weight, terms, 0, torch.float32)
    got = conv(picture, merged.double().view(out, inner, kernel, kernel))
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 12), first=st.integers(0, 11), seed=st.integers(0, 2**16))
def test_blocks_of_rows_equal_the_whole(rows, first, seed):
    generator = torch.Generator().manual_seed(seed)
    first = min(first, rows - 1)
    weight = torch.randn(rows, 7, generator=generator).half()
    up, down = torch.randn(rows, 2, generator=generator), torch.randn(2, 7, generator=generator)
    terms = [Term(LowRank(up, down, 0.5), 1.0, last=True)]
    whole, sums = added(weight, terms, 0, torch.float16)
    top, one = added(weight[:first], terms, 0, torch.float16)
    bottom, two = added(weight[first:], terms, first, torch.float16)
    assert torch.allclose(torch.cat([top, bottom]).float(), whole.float(), rtol=1e-3)
    together = Sums()
    together.add(one)
    together.add(two)
    assert together.lost == pytest.approx(sums.lost, rel=0.04)
    assert together.weight == pytest.approx(sums.weight, rel=1e-5)


def test_cast_loss_by_hand():
    """Near 1.0 an fp16 has steps of 2^-10: of deltas of 0.25 and 1.25 steps, 0 and 1 remain."""
    step = 2.0**-10
    weight = torch.ones(2, 1, dtype=torch.float16)
    up = torch.tensor([[0.25 * step], [1.25 * step]])
    term = Term(LowRank(up, torch.ones(1, 1), 1.0), 1.0, last=True)
    result, sums = added(weight, [term], 0, torch.float16)
    sizes = of_terms([term])
    assert sizes.delta == sizes.last
    sums.last = sizes.last
    assert result.flatten().tolist() == [1.0, 1.0 + step]
    assert sums.cast_loss == pytest.approx(0.25 * math.sqrt(2) / math.hypot(0.25, 1.25))
    assert sums.rms(sums.last) == pytest.approx(step * math.sqrt((0.25**2 + 1.25**2) / 2))
    exact, kept = added(weight, [term], 0, torch.float32)
    assert exact.flatten().tolist() == [1.0 + 0.25 * step, 1.0 + 1.25 * step]
    assert kept.lost == 0.0


def test_cast_loss_is_of_the_last_addend(base, lora, tmp_path):
    """The first may be large: what counts is what the cast hides of the one just trained."""
    large = lora(base, "large", seed=1)
    small = tmp_path / "small.safetensors"
    tensors = load_file(lora(base, "unscaled", seed=2))
    save_file({k: v * 1e-4 if k.endswith("up.weight") else v for k, v in tensors.items()}, small)
    out = tmp_path / "out.safetensors"
    one = merge(base.file, [Addend(large, 1.0)], out)
    two = merge(base.file, [Addend(large, 1.0), Addend(small, 1.0)], out)
    assert one.cast_loss < 0.05 and not one.warnings
    assert two.cast_loss > 0.9 and "cast hides" in two.warnings[0]
    below = sum(row.cast_loss > 0.5 for row in two.matched)
    assert f"In {below} of {len(two.matched)} weights" in two.warnings[1]
    assert all(0.0 <= row.cast_loss <= 1.0 for row in two.matched)
    wide = merge(base.file, [Addend(large, 1.0), Addend(small, 1.0)], out, dtype="float32")
    assert wide.cast_loss < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_strength_zero_leaves_every_tensor_equal(base, lora, tmp_path, dtype):
    tensors = load_file(base.file)
    key = PLACES["lora_unet_mid_block_resnets_1_time_emb_proj"] + ".weight"
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    tensors[key][0] = -0.0  # adding a delta of 0 would make some of them +0.0
    source = tmp_path / "source.safetensors"
    save_file(tensors, source)
    out = tmp_path / "out.safetensors"
    report = merge(source, [Addend(lora(base), 0.0), Addend(lora(base, "b"), 0.0)], out)
    after = load_file(out)
    for name, value in tensors.items():
        assert torch.equal(value.view(torch.uint8), after[name].view(torch.uint8)), name
    assert report.cast_loss == report.relative == 0.0
    assert len(report.matched) == len(load_file(lora(base))) // 3


def test_the_same_bytes_each_time(base, lora, tmp_path):
    path = lora(base)
    contents = set()
    for name, threads in (("a", 1), ("b", 2), ("c", 1)):
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("medium" if name == "c" else "highest")
        try:
            during = set()
            merge(
                base.file,
                [Addend(path, 0.7)],
                tmp_path / f"{name}.safetensors",
                on_tensor=lambda *_, seen=during: seen.add(torch.get_float32_matmul_precision()),
            )
            # Not every CPU multiplies differently at "medium", so the setting itself is looked at.
            assert during == {"highest"}
        finally:
            torch.set_num_threads(1)
            torch.set_float32_matmul_precision("highest")
        contents.add((tmp_path / f"{name}.safetensors").read_bytes())
    assert len(contents) == 1


def test_surrounding_precision_is_put_back():
    torch.set_float32_matmul_precision("medium")
    try:
        with exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", ["bfloat16", "float32", "fp16"])
def test_dtype_casts_the_weights_and_nothing_else(base, lora, tmp_path, name):
    out = tmp_path / "out.safetensors"
    merge(base.file, [Addend(lora(base), 0.5)], out, dtype=name)
    wanted = {"fp16": torch.float16}.get(name) or getattr(torch, name)
    before, after = load_file(base.file), load_file(out)
    for key, value in after.items():
        model = key.startswith((UNET, "first_stage_model.", "cond_stage_model."))
        assert value.dtype == (wanted if model else before[key].dtype), key
    vae = "first_stage_model.encoder.conv_in.weight"
    assert torch.equal(after[vae], before[vae].to(wanted))


def test_float32_output_is_the_sum_itself(base, lora, tmp_path):
    path, out = lora(base), tmp_path / "out.safetensors"
    merge(base.file, [Addend(path, 0.5)], out, dtype="float32")
    tensors, before, after = load_file(path), load_file(base.file), load_file(out)
    for name, place in PLACES.items():
        up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
        weight = before[f"{place}.weight"].double()
        delta = up.double().flatten(1) @ down.double().flatten(1) * (0.5 * 2.0 / 3)
        expected = weight + delta.view(weight.shape)
        assert torch.allclose(after[f"{place}.weight"].double(), expected, rtol=0, atol=1e-7)


def test_moving_average_follows_the_weight(base, lora, tmp_path):
    """Loaders that prefer model_ema must not get the unmerged model."""
    tensors = load_file(base.file)
    key = PLACES["lora_unet_mid_block_resnets_1_time_emb_proj"] + ".weight"
    twin = "model_ema." + key.removeprefix("model.").replace(".", "")
    tensors[twin] = tensors[key] + 1
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, source)
    report = merge(source, [Addend(lora(base), 1.0)], out, dtype="float32")
    after = load_file(out)
    delta = after[key] - tensors[key].float()
    assert float(delta.abs().max()) > 0
    assert torch.allclose(after[twin] - tensors[twin].float(), delta, atol=1e-6)
    assert {key, twin} <= {row.key for row in report.matched}


def test_linear_lora_on_a_1x1_convolution_and_back(base, lora, tmp_path):
    """Files mix both forms of proj_in: the delta takes the weight's shape."""
    tensors = load_file(lora(base))
    name = "lora_unet_down_blocks_1_attentions_0_proj_in"
    assert tensors[f"{name}.lora_down.weight"].ndim == 4
    for part in ("lora_up", "lora_down"):
        tensors[f"{name}.{part}.weight"] = tensors[f"{name}.{part}.weight"].flatten(1)
    linear = "lora_unet_mid_block_resnets_1_time_emb_proj"
    for part in ("lora_up", "lora_down"):
        wide = tensors[f"{linear}.{part}.weight"]
        tensors[f"{linear}.{part}.weight"] = wide[:, :, None, None].contiguous()
    other = tmp_path / "other.safetensors"
    save_file(tensors, other)
    merge(base.file, [Addend(lora(base), 1.0)], tmp_path / "a.safetensors")
    merge(base.file, [Addend(other, 1.0)], tmp_path / "b.safetensors")
    assert raw(tmp_path / "a.safetensors") == raw(tmp_path / "b.safetensors")


def test_concat_equals_the_chain(base, lora, tmp_path):
    paths = [
        lora(base, "a", seed=1, rank=2, alpha=3.0),
        lora(base, "b", seed=2, rank=4, alpha=None, every=3),
        lora(base, "c", seed=3, rank=1, alpha=1.0, text=False),
        lora(base, "unused", seed=4),
    ]
    addends = [Addend(p, s) for p, s in zip(paths, (0.9, -0.4, 1.5, 0.0), strict=True)]
    one = tmp_path / "one.safetensors"
    concat(addends, one, metadata={"mine": "yes"})
    merge(base.file, addends, tmp_path / "chain.safetensors", dtype="float32")
    merge(base.file, [Addend(one, 1.0)], tmp_path / "sum.safetensors", dtype="float32")
    chain, total = (
        load_file(tmp_path / "chain.safetensors"),
        load_file(tmp_path / "sum.safetensors"),
    )
    for key, value in chain.items():
        assert torch.allclose(total[key], value, rtol=0, atol=2e-7), key
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = load_file(one)
    shared = [p for p in paths[:3] if f"{name}.alpha" in load_file(p) or p == paths[1]]
    assert tensors[f"{name}.alpha"] == tensors[f"{name}.lora_down.weight"].shape[0]
    assert tensors[f"{name}.alpha"] in (3.0, 7.0) and len(shared) >= 2
    assert all(value.dtype == torch.float32 for value in tensors.values())
    with safe_open(one, "pt") as file:
        assert file.metadata()["mine"] == "yes" and file.metadata()["ss_network_dim"] == "7"
    again = tmp_path / "again.safetensors"
    concat(addends, again, metadata={"mine": "yes"})
    assert again.read_bytes() == one.read_bytes()


def test_concat_of_nothing_but_zeros_is_a_lora_that_does_nothing(base, lora, tmp_path):
    one, out = tmp_path / "one.safetensors", tmp_path / "out.safetensors"
    concat([Addend(lora(base), 0.0)], one)
    assert load_file(one).keys() == load_file(lora(base)).keys()
    report = merge(base.file, [Addend(one, 1.0)], out, dtype="float32")
    assert report.relative == 0.0


def test_concat_refuses_two_sizes(base, tiny, lora, tmp_path):
    other = lora(tiny("sd15"), "other")
    with pytest.raises(MergeError, match="other sizes") as caught:
        concat([Addend(lora(base), 1.0), Addend(other, 1.0)], tmp_path / "one.safetensors")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "one.safetensors").exists()
