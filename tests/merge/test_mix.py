"""Mixes: sums and differences by hand-worked numbers, bytes where nothing is mixed, refusals."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import merge.mix
from merge import MergeError
from merge.container import read_header
from merge.keys import EMA, ema_key
from merge.mix import mix
from merge.mix_recipe import MixRecipe, amount, difference, sum_of_two, weighted
from merge.mix_toml import read_recipe

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = {"sd15": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
TEXT_2 = "conditioner.embedders.1.model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
NORM = f"{UNET}middle_block.0.in_layers.0.weight"
MIDDLE = f"{UNET}middle_block.0.in_layers.2.weight"


@pytest.fixture
def model(tmp_path):
    """model(base, "a", change) writes a single file of the base's kind; change(key, tensor) says
    what each weight is."""

    def write(base, name, change=lambda key, tensor: tensor, **metadata):
        tensors = {}
        for key, tensor in load_file(base.file).items():
            weight = tensor.is_floating_point() and tensor.numel() > 0
            tensors[key] = change(key, tensor) if weight else tensor
        path = tmp_path / f"{name}.safetensors"
        kept = {key: tensor.contiguous() for key, tensor in tensors.items() if tensor is not None}
        save_file(kept, path, {key.replace("__", "."): text for key, text in metadata.items()})
        return path

    return write


def filled(value):
    return lambda key, tensor: torch.full_like(tensor, value)


def noisy(seed):
    generator = torch.Generator().manual_seed(seed)

    def change(key, tensor):
        noise = torch.randn(tensor.shape, generator=generator)
        found = (tensor + 0.1 * noise).to(tensor.dtype)
        found.view(-1)[0] = -0.0
        return found

    return change


def of_two(a, b, alpha=None, blocks=None, dtype=None, **apart):
    step = sum_of_two("mix", "A", "B", amount(alpha, blocks, **apart))
    return MixRecipe({"A": a, "B": b}, (step,), dtype=dtype)


def of_three(a, b, c, alpha):
    return MixRecipe({"A": a, "B": b, "C": c}, (difference("mix", "A", "B", "C", amount(alpha)),))


def bits(path):
    """Every tensor's bytes."""
    return {
        key: (t.dtype, t.shape, t.reshape(-1).view(torch.uint8).numpy().tobytes())
        for key, t in load_file(path).items()
    }


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


@pytest.mark.parametrize("name", ["tiny", "sdxl"])
def test_what_is_not_mixed_keeps_its_bytes(tiny, model, tmp_path, name):
    a, b = (model(tiny(name), letter, noisy(seed)) for seed, letter in enumerate("ab"))
    out = tmp_path / "out.safetensors"
    report = mix(of_two(a, b, 0.0), out)
    assert bits(out) == bits(a) != bits(b)
    assert report.mixed == 0 and report.single == {"A": report.tensors}
    mix(of_two(a, b, 1.0), out)
    assert bits(out) == bits(b)
    mix(of_three(a, b, b, 0.7), out)
    assert bits(out) == bits(a)
    mix(of_three(a, model(tiny(name), "c", noisy(1)), b, 0.7), out)
    assert bits(out) == bits(a), "B and C are two files with the same numbers"
    mix(MixRecipe({"A": a, "B": b}, (weighted("mix", "BA", (1.0, 0.0)),)), out)
    assert bits(out) == bits(b)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    first=st.floats(-2, 2, width=32),
    second=st.floats(-2, 2, width=32),
    weights=st.tuples(*[st.floats(-1, 1, width=32)] * 3).filter(any),
)
def test_chains_equal_float64(base, model, tmp_path, first, second, weights):
    """Three steps, one of which is used twice: as numpy computes them in float64."""
    files = {letter: tmp_path / f"{letter}.safetensors" for letter in "ABC"}
    for seed, (letter, path) in enumerate(files.items()):
        if not path.exists():
            model(base, letter, noisy(seed))
    steps = (
        sum_of_two("half", "A", "B", amount(first)),
        difference("moved", "half", "B", "C", amount(second)),
        weighted("end", ("moved", "half", "A"), weights),
    )
    out = tmp_path / "out.safetensors"
    mix(MixRecipe(files, steps, dtype="float32"), out)
    a, b, c = (load_file(path) for path in files.values())
    written = load_file(out)
    for key in (CONV_IN, MIDDLE, *(k for k in written if k.startswith(TEXT["sd15"]))):
        x, y, z = (m[key].double().numpy() for m in (a, b, c))
        half = x * (1 - first) + y * first
        moved = half + second * (y - z)
        whole = weights[0] * moved + weights[1] * half + weights[2] * x
        size = sum(np.abs(t) for t in (x, y, z)) * (1 + abs(first)) * (1 + abs(second)) * 3
        assert np.all(np.abs(written[key].numpy() - whole) <= 2e-7 * size + 1e-30)


def test_sums_are_float32_with_one_cast(base, model, tmp_path):
    """1 + 2⁻¹¹ is no fp16 number: cast after each step it would be 1 three times."""
    grain = 2.0**-11
    a, b, c = (
        model(base, letter, filled(v)) for letter, v in zip("abc", (1, grain, 0), strict=True)
    )
    steps = (
        difference("one", "A", "B", "C", amount(1.0)),
        difference("two", "one", "B", "C", amount(1.0)),
    )
    out = tmp_path / "out.safetensors"
    mix(MixRecipe({"A": a, "B": b, "C": c}, steps), out)
    assert load_file(out)[MIDDLE].unique().tolist() == [1 + 2 * grain]


@pytest.mark.parametrize("dtypes", [(torch.float16,) * 2, (torch.bfloat16, torch.float32)])
def test_blocks_of_elements_do_not_show(base, model, tmp_path, monkeypatch, dtypes):
    a, b = (
        model(base, letter, lambda key, t, n=seed, d=dtype: noisy(n)(key, t).to(d))
        for seed, (letter, dtype) in enumerate(zip("ab", dtypes, strict=True))
    )
    recipe = of_two(a, b, 0.3)
    mix(recipe, tmp_path / "whole.safetensors")
    monkeypatch.setattr(merge.mix, "BLOCK", 997)
    mix(recipe, tmp_path / "pieces.safetensors")
    whole, pieces = (tmp_path / f"{n}.safetensors" for n in ("whole", "pieces"))
    assert whole.read_bytes() == pieces.read_bytes()


def block_number(key, blocks):
    """Where a UNet key stands among 25 or 19 blocks, by other code than ours."""
    half = len(blocks) // 2
    side, _, rest = key.removeprefix(UNET).partition(".")
    number = int(rest.split(".")[0]) if rest.split(".")[0].isdigit() else 0
    return {
        "input_blocks": number,
        "middle_block": half,
        "output_blocks": half + 1 + number,
        "out": len(blocks) - 1,
    }.get(side, 0)


@pytest.mark.parametrize(("name", "count"), [("sd15", 25), ("sdxl", 19)])
@pytest.mark.parametrize("based", [True, False])
def test_lists_of_numbers(tiny, model, tmp_path, name, count, based):
    """A is zeros and B ones, so each weight is its block's number. All are exact in fp16."""
    a, b = (model(tiny(name), letter, filled(v)) for letter, v in (("a", 0), ("b", 1)))
    blocks = [(n + 1) / 32 for n in range(count)]
    text = ",".join(map(str, [0.75, *blocks] if based else blocks))
    out = tmp_path / "out.safetensors"
    mix(of_two(a, b, None if based else 0.75, text), out)
    seen = set()
    for key, tensor in load_file(out).items():
        if tensor.is_floating_point() and tensor.numel():
            unet = key.startswith(UNET)
            expected = blocks[block_number(key, blocks)] if unet else 0.75
            assert tensor.unique().tolist() == [expected], key
            seen.add(expected)
    assert seen >= {0.75, blocks[0], blocks[count // 2], blocks[-1]}


def test_parts_apart(tiny, model, tmp_path):
    a, b = (model(tiny("sdxl"), letter, filled(v)) for letter, v in (("a", 0), ("b", 1)))
    out = tmp_path / "out.safetensors"
    mix(of_two(a, b, 0.5, "IN01-02=0.25,M00=0,BASE=0.125", te2=0.75, vae=1.0), out)
    written = load_file(out)
    for prefix, value in (
        (f"{UNET}input_blocks.1.", 0.25),
        (f"{UNET}input_blocks.2.", 0.25),
        (f"{UNET}input_blocks.3.", 0.5),
        (f"{UNET}label_emb.", 0.5),
        (f"{UNET}middle_block.", 0.0),
        (TEXT["sdxl"], 0.125),
        (TEXT_2, 0.75),
        (VAE, 1.0),
    ):
        found = [
            t for key, t in written.items() if key.startswith(prefix) and t.is_floating_point()
        ]
        assert found and all(t.unique().tolist() == [value] for t in found), prefix


def test_the_mix_loads(tiny, model, tmp_path, load, state):
    """diffusers' own loader sees the mix of what it sees in the two."""
    for name in ("tiny", "sdxl"):
        base = tiny(name)
        a, b = (model(base, letter, noisy(seed)) for seed, letter in enumerate("ab"))
        out = tmp_path / "out.safetensors"
        mix(of_two(a, b, 0.25), out)
        first, second, mixed = (state(load(base, path)) for path in (a, b, out))
        for key, value in mixed.items():
            expected = (first[key].float() * 0.75 + second[key].float() * 0.25).to(value.dtype)
            assert torch.equal(value, expected), key


def test_another_vae(base, model, tmp_path, load):
    """From a checkpoint, from a file of the VAE alone in ldm's keys, and from diffusers' own."""
    a, b, c = (model(base, letter, noisy(seed)) for seed, letter in enumerate("abc"))
    other = {k: t for k, t in load_file(c).items() if k.startswith(VAE)}
    alone, diffusers = tmp_path / "vae.safetensors", tmp_path / "diffusers.safetensors"
    save_file({k.removeprefix(VAE): t for k, t in other.items()}, alone)
    load(base, c).vae.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "diffusion_pytorch_model.safetensors").rename(diffusers)
    out = tmp_path / "out.safetensors"
    mix(of_two(a, b, 0.5), out)
    plain = bits(out)
    expected = {**plain, **{key: value for key, value in bits(c).items() if key in other}}
    assert expected != plain
    for path in (c, alone, diffusers):
        recipe = of_two(a, b, 0.5)
        recipe = MixRecipe({**recipe.models, "clear": path}, recipe.steps, "clear")
        report = mix(recipe, out)
        assert bits(out) == expected
        assert report.single["clear"] == len(other) and not report.missing
    without = model(base, "without", lambda key, t: None if key.startswith(VAE) else t)
    mix(MixRecipe({"A": without, "clear": alone}, (weighted("x", "AA", (0.5, 0.5)),), "clear"), out)
    assert {key: value for key, value in bits(out).items() if key in other} == {
        key: value for key, value in expected.items() if key in other
    }
    save_file({k: t for k, t in load_file(alone).items() if "decoder" in k}, alone)
    with pytest.raises(MergeError, match=r"has no first_stage_model\.encoder\.\S+\. Name a file"):
        mix(MixRecipe({"A": a, "B": b, "clear": alone}, recipe.steps, "clear"), out)


def test_missing_and_strange_tensors_are_reported(base, model, tmp_path):
    a = model(base, "a", filled(1), note="kept")
    b = model(base, "b", lambda key, t: None if key == NORM else torch.full_like(t, 3))
    tensors = load_file(b)
    tensors["stranger.in_the_file"] += 7
    tensors[f"{VAE}new.weight"] = torch.ones(3)
    save_file(tensors, b)
    out = tmp_path / "out.safetensors"
    report = mix(of_two(a, b, 0.5), out)
    written = load_file(out)
    assert list(read_header(a).entries) == list(read_header(out).entries)
    assert written[NORM].unique().tolist() == [1.0]
    assert written[CONV_IN].unique().tolist() == [2.0]
    assert written["stranger.in_the_file"].tolist() == [0, 1, 2, 3, 4]
    assert report.missing == {"B": (NORM,)}
    assert any(f"has no {NORM}" in said for said in report.warnings)
    assert mix(of_two(b, a, 0.5), out).left_out == {"B": (NORM,)}


def test_an_inpainting_model_is_refused_by_name(base, model, tmp_path):
    def nine(key, tensor):
        return tensor.repeat(1, 3, 1, 1)[:, :9] if key == CONV_IN else torch.full_like(tensor, 3)

    a, b = model(base, "a", filled(1)), model(base, "b", nine)
    out = tmp_path / "out.safetensors"
    with pytest.raises(
        MergeError, match=rf"{CONV_IN} is \[\d+, 4, 3, 3\] in .*\[\d+, 9, 3, 3\] in"
    ):
        mix(of_two(a, b, 0.5), out)
    assert not out.exists()
    mix(of_two(a, b, 0.5, "IN00=0"), out)
    written = load_file(out)
    assert [written[key].unique().tolist() for key in (CONV_IN, MIDDLE)] == [[1.0], [2.0]]


def test_linear_and_1x1_are_the_same(base, model, tmp_path):
    key = f"{UNET}middle_block.1.proj_in.weight"
    a = model(base, "a", filled(1))
    b = model(base, "b", lambda k, t: filled(3)(k, t[:, :, 0, 0] if k == key else t))
    out = tmp_path / "out.safetensors"
    mix(of_two(a, b, 0.5), out)
    assert load_file(out)[key].shape == load_file(a)[key].shape
    assert load_file(out)[key].unique().tolist() == [2.0]


def test_moving_averages_and_spellings(base, model, tmp_path):
    """A has an average, and its text encoder no `text_model.`; B is as files are today."""
    a, b = model(base, "a", filled(1)), model(base, "b", filled(3))
    tensors = {k.replace(".text_model.", "."): t for k, t in load_file(a).items()}
    tensors[ema_key(MIDDLE)] = torch.full_like(tensors[MIDDLE], 5)
    save_file(tensors, a)
    out = tmp_path / "out.safetensors"
    report = mix(of_two(a, b, 0.5), out)
    written = load_file(out)
    assert written[ema_key(MIDDLE)].unique().tolist() == [4.0]
    text = [t for key, t in written.items() if key.startswith(TEXT["sd15"])]
    assert text and all(t.unique().tolist() == [2.0] for t in text)
    assert not report.missing and not report.left_out
    assert not any(key.startswith(EMA) for key in load_file(b))
    assert not mix(of_two(b, a, 0.5), out).left_out


def test_positions_and_markers_are_the_first_models(base, model, tmp_path):
    key = f"{TEXT['sd15']}text_model.embeddings.position_ids"
    a, b = model(base, "a", filled(1)), model(base, "b", filled(3))
    for path, tensor in ((a, torch.arange(77)[None].half()), (b, torch.arange(77)[None] + 0.5)):
        tensors = {**load_file(path), key: tensor}
        if path == b:
            del tensors["v_pred"]
        save_file(tensors, path)
    out = tmp_path / "out.safetensors"
    report = mix(of_two(a, b, 0.3), out)
    assert torch.equal(load_file(out)[key], load_file(a)[key])
    assert "v_pred" in load_file(out) and metadata(out)["modelspec.prediction_type"] == "v"
    (said,) = report.warnings
    assert "the marker v_pred" in said and "has it;" in said and "ztsnr" not in said
    report = mix(of_two(b, a, 0.3), out)
    assert "v_pred" not in load_file(out) and "lacks it;" in report.warnings[0]


def test_weights_that_are_no_whole_are_pointed_at(base, model, tmp_path):
    a, b = model(base, "a", filled(1)), model(base, "b", filled(2))
    recipe = MixRecipe({"A": a, "B": b}, (weighted("mix", "AB", (1.0, 0.5)),))
    report = mix(recipe, tmp_path / "out.safetensors")
    assert "make 1.5 together" in report.warnings[0]
    assert load_file(tmp_path / "out.safetensors")[MIDDLE].unique().tolist() == [2.0]


def test_dtypes(base, model, tmp_path):
    """The first model's, or the one asked for; what is copied is cast too."""
    a = model(base, "a", lambda key, t: torch.full_like(t, 1.0, dtype=torch.float32))
    b = model(base, "b", lambda key, t: torch.full_like(t, 1 + 2**-9, dtype=torch.float64))
    out = tmp_path / "out.safetensors"
    mix(of_two(a, b, 1.0), out)
    assert load_file(out)[MIDDLE].dtype == torch.float32
    assert load_file(out)[MIDDLE].unique().tolist() == [1 + 2**-9]
    report = mix(of_two(a, b, 0.5, "M00=0", dtype="bf16"), out)
    assert load_file(out)[MIDDLE].dtype == load_file(out)[CONV_IN].dtype == torch.bfloat16
    assert load_file(out)["stranger.in_the_file"].dtype == torch.int64
    assert report.size == out.stat().st_size
    with pytest.raises(MergeError, match="'int4' is not one of"):
        mix(of_two(a, b, 0.5, dtype="int4"), out)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_dtype_as_wide_as_the_models_own(base, model, tmp_path, dtype):
    """Every tensor is as long as before, and has another dtype or the same."""
    a, b = (model(base, letter, filled(v)) for letter, v in (("a", 1), ("b", 3)))
    out = tmp_path / "out.safetensors"
    mix(of_two(a, b, 0.5, "M00=0", dtype=dtype), out)
    written = load_file(out)
    assert {key: tuple(t.shape) for key, t in written.items()} == {
        key: tuple(t.shape) for key, t in load_file(a).items()
    }
    assert written[CONV_IN].unique().tolist() == [2.0]
    assert written[MIDDLE].unique().tolist() == [1.0]
    assert written[MIDDLE].dtype == getattr(torch, dtype)


def test_8_bits_are_copied_but_not_mixed(base, model, tmp_path):
    small = model(base, "small", lambda k, t: t.to(torch.float8_e4m3fn) if k == MIDDLE else t)
    a, out = model(base, "a"), tmp_path / "out.safetensors"
    with pytest.raises(MergeError, match=rf"{MIDDLE} in .*small.* is stored as F8_E4M3"):
        mix(of_two(a, small, 0.5), out)
    mix(of_two(small, a, 0.5, "M00=0"), out)
    assert bits(out)[MIDDLE] == bits(small)[MIDDLE]


def test_ckpt(base, model, tmp_path):
    a, b = model(base, "a", noisy(0)), model(base, "b", noisy(1))
    for path in (a, b):
        tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
        torch.save({"state_dict": tensors}, path.with_suffix(".ckpt"))
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    mix(of_two(a, b, 0.5, "M00=1,IN00=0"), one)
    mix(of_two(tmp_path / "a.ckpt", tmp_path / "b.ckpt", 0.5, "M00=1,IN00=0"), two)
    assert bits(one) == bits(two)


def test_lineage(base, model, tmp_path):
    """Hashes, steps, and the stories of the models themselves; no paths, no clock."""
    a = model(base, "a", filled(1), note="kept", urushi__lineage='{"round":3}')
    b = model(base, "b", filled(2))
    out = tmp_path / "out.safetensors"
    report = mix(of_two(a, b, 0.25), out, metadata={"modelspec.title": "ours"})
    said = metadata(out)
    assert said["note"] == "kept" and said["modelspec.title"] == "ours"
    lineage = json.loads(said["urushi.lineage"])
    assert lineage["models"] == {
        "A": {"blake3": report.models["A"], "lineage": {"round": 3}},
        "B": {"blake3": report.models["B"]},
    }
    assert lineage["mix"] == [{"name": "mix", "sum": ["A", "B"], "weights": [0.75, 0.25]}]
    assert said["modelspec.merged_from"] == ", ".join(
        f"blake3:{report.models[name]}" for name in "AB"
    )
    assert str(tmp_path) not in str(said)
    known = {a: "a" * 64, b: "b" * 64}
    assert mix(of_two(a, b, 0.25), out, identities=known).models == {"A": "a" * 64, "B": "b" * 64}
    json.dumps(report.to_json())


def test_the_bar_counts_every_tensor(base, model, tmp_path):
    told = []
    a, b = model(base, "a"), model(base, "b")
    report = mix(
        of_two(a, b, 0.5), tmp_path / "out.safetensors", on_tensor=lambda *done: told.append(done)
    )
    assert told == [(n + 1, report.tensors) for n in range(report.tensors)]


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_nan_and_overflow_leave_nothing(base, model, tmp_path, alpha):
    def broken(key, tensor):
        if key == MIDDLE:
            tensor.view(-1)[-1] = float("nan")
        return tensor

    a, b, large = model(base, "a", broken), model(base, "b"), model(base, "large", filled(6e4))
    out = tmp_path / "out.safetensors"
    with pytest.raises(MergeError, match=rf"{MIDDLE} in .*a\.safetensors holds NaN"):
        mix(of_two(a, b, alpha), out)
    double = MixRecipe({"A": large}, (weighted("mix", "AA", (1.0, 1.0)),))
    with pytest.raises(MergeError, match=r"does not fit into F16 after the mix"):
        mix(double, out)
    assert not out.exists() and not list(tmp_path.glob(".*part"))


def test_a_model_is_not_overwritten(base, model, tmp_path):
    a, b = model(base, "a", filled(1)), model(base, "b", filled(3))
    with pytest.raises(MergeError, match="would overwrite its input"):
        mix(of_two(a, b, 0.5), b)
    mix(of_two(a, b, 0.5), b, force=True)
    assert load_file(b)[MIDDLE].unique().tolist() == [2.0]


def test_strangers_are_refused(tiny, base, model, lora, tmp_path):
    a, b = model(base, "a"), model(base, "b")
    out = tmp_path / "out.safetensors"
    for other, said in (
        (tiny("sdxl").file, r"is SD 1\.5 and .* is SDXL"),
        (base.folder, "is a folder; single files are mixed"),
        (lora(base), "it is a LoRA"),
        (tmp_path / "none.safetensors", "no base checkpoint"),
    ):
        with pytest.raises(MergeError, match=said):
            mix(of_two(a, other, 0.5), out)
    for blocks, said in (
        ("OUT11=1", r"a\.safetensors has no block OUT11 \(step 'mix'\)\. It has IN00, "),
        (",".join(["1"] * 20), r"19 blocks of SDXL, and .* is SD 1\.5\. Give 25 or 26"),
    ):
        with pytest.raises(MergeError, match=said):
            mix(of_two(a, b, 0.5, blocks), out)
    with pytest.raises(MergeError, match=r"25 blocks of SD 1\.5, and .* is SDXL\. Give 19 or 20"):
        mix(of_two(tiny("sdxl").file, tiny("sdxl").file, 0.5, ",".join(["1"] * 26)), out)
    nothing = MixRecipe({"A": a, "B": b}, (weighted("none", "AB", (0.0, 0.0)),))
    with pytest.raises(MergeError, match="'none' gives no model any weight"):
        mix(nothing, out)
    assert not out.exists()


RECIPE = """
dtype = "float32"
vae = "clear"

[models]                       # beside this file
anime = "a.safetensors"
photo = "b.safetensors"
plain = "c.safetensors"
clear = "d.safetensors"

[[step]]
name = "half"
sum = ["anime", "photo"]
alpha = 0.25
blocks = "M00=0.5,BASE=1"
te = 0.75

[[step]]
name = "moved"
difference = ["half", "photo", "plain"]
alpha = 0.5

[[step]]
name = "final"
sum = ["moved", "anime", "plain"]
weights = [0.5, 0.25, 0.25]
"""


def test_a_recipe_of_three_steps(base, model, tmp_path):
    for letter, value in zip("abcd", (0, 8, 4, 64), strict=True):
        model(base, letter, filled(value))
    path, out = tmp_path / "mix.toml", tmp_path / "out.safetensors"
    path.write_text(RECIPE)
    mix(read_recipe(path), out)
    written = load_file(out)
    # half: anime · (1 − α) + photo · α; moved: half + 2; final: half of that, and a quarter of 4.
    assert written[CONV_IN].unique().tolist() == [(8 * 0.25 + 2) / 2 + 1]
    assert written[MIDDLE].unique().tolist() == [(8 * 0.5 + 2) / 2 + 1]
    text = next(t for key, t in written.items() if key.startswith(TEXT["sd15"]))
    assert text.unique().tolist() == [(8 * 0.75 + 2) / 2 + 1]
    vae = [t for key, t in written.items() if key.startswith(VAE)]
    assert all(t.unique().tolist() == [64.0] and t.dtype == torch.float32 for t in vae)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[[step]]", "[step]", "not TOML|step is one table"),
        ("[models]", "[model]", "'model' is no key of the recipe .did you mean 'models'"),
        ("alpha = 0.5", "alfa = 0.5", "'alfa' is no key of step 'moved' .did you mean 'alpha'"),
        ("alpha = 0.5", "", "step 'moved': There is no alpha"),
        ("alpha = 0.5", "alpha = nan", "not a finite number"),
        ("alpha = 0.5", 'alpha = "0.5"', "alpha of step 'moved' is '0.5', not a number"),
        ('"half", "photo", "plain"', '"halve", "photo", "plain"', "'halve', which is no .*'half'"),
        ('"half", "photo", "plain"', '"half", "photo"', "names 2 inputs"),
        ('"half", "photo", "plain"', '"photo", "photo", "plain"', "Nothing uses half"),
        ("0.5, 0.25, 0.25", "0.5, 0.5", "3 models and 2 weights"),
        ("weights =", "alpha = 1\nweights =", "'final' has weights and alpha"),
        ('vae = "clear"', 'vae = "half"', "'half', which is no model"),
        ("M00=0.5", "M07=0.5", "'M07' is not a block"),
        ("M00=0.5,BASE=1", "OUTALL", "a preset for LoRAs"),
        ('name = "moved"', 'name = "half"', "Two things are called 'half'"),
        ('sum = ["anime", "photo"]', "", "needs one of sum and difference"),
        ('anime = "a.safetensors"', "anime = 3", "models.anime is 3, not a text"),
    ],
)
def test_wrong_recipes_say_where(tmp_path, old, new, said):
    path = tmp_path / "mix.toml"
    path.write_text(RECIPE.replace(old, new, 1))
    with pytest.raises(MergeError, match=said) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value) and caught.value.exit_code == 2


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(MergeError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(MergeError, match="is no text"):
        read_recipe(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text("[models]\na = 'a'\n")
    with pytest.raises(MergeError, match="has no step"):
        read_recipe(tmp_path / "a.toml")
