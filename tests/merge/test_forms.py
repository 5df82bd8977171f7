"""Every form of adapter against its formula, and PEFT's folders against PEFT's own merge."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from merge import Addend, merge
from merge.lora import open_loras

NAME = "lora_unet_mid_block_resnets_0_conv1"
OUT, IN, KERNEL = 12, 8, (3, 3)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def wide(tensor):
    return tensor.double().numpy()


def named(parts, name=NAME):
    return {f"{name}.{part}": value.clone().contiguous() for part, value in parts.items()}


def moved(file, module, weight, strength=1.0, tensor="weight", block=5):
    """The weight with the module's delta, asked for in blocks of rows where that is allowed."""
    delta = file.delta(module, tensor)
    flat = weight.reshape(weight.shape[0], -1)
    step = len(flat) if delta.whole else block
    rows = [
        flat[first : first + step] + delta.rows(flat[first : first + step], first, strength)
        for first in range(0, len(flat), step)
    ]
    return torch.cat(rows).view(weight.shape)


def close(ours, theirs, atol=2e-5):
    theirs = torch.as_tensor(theirs).double()
    assert ours.shape == theirs.shape
    assert torch.allclose(ours.double(), theirs, rtol=1e-5, atol=atol)


def tucker(core, outer, inner):
    """Σ core[a, b] · outer[:, a] · inner[b, :], written out."""
    total = np.zeros((outer.shape[0], inner.shape[1], *core.shape[2:]))
    for a in range(core.shape[0]):
        for b in range(core.shape[1]):
            total += np.multiply.outer(np.outer(outer[:, a], inner[b]), core[a, b])
    return total


def kronecker(left, right):
    """Blocks left[i, j] · right."""
    rows = [np.concatenate([number * right for number in row], axis=1) for row in left]
    return np.concatenate(rows, axis=0)


def lora(shape, rank=4):
    out, inner, *kernel = shape
    ones = (1,) * len(kernel)
    up, down = numbers(out, rank, *ones), numbers(rank, inner, *kernel, seed=1)
    product = wide(up).reshape(out, rank) @ wide(down).reshape(rank, -1)
    return {"lora_up.weight": up, "lora_down.weight": down}, product.reshape(shape), rank


def locon(rank=4):
    up, down = numbers(OUT, rank, 1, 1), numbers(rank, IN, 1, 1, seed=1)
    core = numbers(rank, rank, *KERNEL, seed=2)
    product = tucker(wide(core), wide(up)[:, :, 0, 0], wide(down)[:, :, 0, 0])
    parts = {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": core}
    return parts, product, rank


def loha(shape, rank=3):
    out, columns = shape[0], math.prod(shape[1:])
    parts = {
        f"hada_w{side}_{half}": numbers(*size, seed=int(side) * 7)
        for side in "12"
        for half, size in (("a", (out, rank)), ("b", (rank, columns)))
    }
    one, two = (wide(parts[f"hada_w{s}_a"]) @ wide(parts[f"hada_w{s}_b"]) for s in "12")
    return parts, (one * two).reshape(shape), rank


def loha_tucker(rank=3):
    parts, products = {}, []
    for side in "12":
        outer, inner = numbers(rank, OUT, seed=int(side)), numbers(rank, IN, seed=int(side) * 5)
        core = numbers(rank, rank, *KERNEL, seed=int(side) * 9)
        products.append(tucker(wide(core), wide(outer).T, wide(inner)))
        parts |= {
            f"hada_w{side}_a": outer, f"hada_w{side}_b": inner, f"hada_t{side}": core
        }  # fmt: skip
    return parts, products[0] * products[1], rank


def lokr(left_rank=None, right=None, kernel=KERNEL):
    """left (3, 2), right (4, 4[, k, k]). right: whole, columns, kernel or tucker."""
    rank, parts = 2, {}
    if left_rank:
        one, two = numbers(3, left_rank), numbers(left_rank, 2, seed=1)
        parts, left = {"lokr_w1_a": one, "lokr_w1_b": two}, wide(one) @ wide(two)
    else:
        parts = {"lokr_w1": numbers(3, 2)}
        left = wide(parts["lokr_w1"])
    size = (4, 4, *kernel)
    if right == "whole":
        parts["lokr_w2"] = numbers(*size, seed=3)
        other = wide(parts["lokr_w2"])
    elif right == "tucker":
        outer, inner, core = numbers(2, 4), numbers(2, 4, seed=4), numbers(2, 2, *kernel, seed=5)
        parts |= {"lokr_w2_a": outer, "lokr_w2_b": inner, "lokr_t2": core}
        other = tucker(wide(core), wide(outer).T, wide(inner))
    else:
        one = numbers(4, 2, seed=3)
        two = numbers(2, *size[1:], seed=4)
        other = (wide(one) @ wide(two).reshape(2, -1)).reshape(size)
        parts |= {"lokr_w2_a": one, "lokr_w2_b": two if right == "kernel" else two.flatten(1)}
    whole = right == "whole" and not left_rank
    return parts, kronecker(left, other), None if whole else rank


FORMS = {
    "linear": lora((OUT, IN)),
    "1x1": lora((OUT, IN, 1, 1)),
    "3x3": lora((OUT, IN, *KERNEL)),
    "Tucker": locon(),
    "LoHa": loha((OUT, IN)),
    "LoHa of a kernel": loha((OUT, IN, *KERNEL)),
    "LoHa of cores": loha_tucker(),
    "LoKr, left and right whole": lokr(right="whole"),
    "LoKr, left split": lokr(2, "whole", ()),
    "LoKr, right split": lokr(None, "columns", ()),
    "LoKr, kernel as columns": lokr(None, "columns"),
    "LoKr, both split": lokr(2, "kernel"),
    "LoKr of a core": lokr(None, "tucker"),
}
ALPHA = 1.5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [ALPHA, None])
def test_forms_equal_their_formulas(opened, form, alpha):
    parts, product, rank = FORMS[form]
    told = {} if alpha is None else {"alpha": torch.tensor(alpha)}
    # LyCORIS does not scale a LoKr whose two factors are whole.
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    weight = numbers(*product.shape, seed=9)
    with opened(named(parts | told)) as file:
        (module,) = file.modules.values()
        assert (module.name, module.rank) == (NAME, rank) and file.writer == "kohya"
        assert module.has_weight and not module.has_bias and module.fits(weight.shape)
        assert not module.fits((OUT + 1, *weight.shape[1:]))
        assert not module.fits((OUT, IN + 1, *weight.shape[2:]))
        for strength in (1.0, -0.3):
            close(moved(file, module, weight, strength), wide(weight) + strength * scale * product)


@pytest.mark.parametrize("form", FORMS)
def test_scalar_multiplies(opened, form):
    parts, product, _ = FORMS[form]
    with opened(named({**parts, "scalar": torch.tensor(0.25)})) as file:
        (module,) = file.modules.values()
        close(moved(file, module, torch.zeros(product.shape)), 0.25 * product)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("by_input", [False, True])
def test_dora_of_every_form(opened, form, strength, by_input):
    """W + s · (m · V / ‖V‖ − W), the norm per output row or per input channel."""
    parts, product, rank = FORMS[form]
    scale = 1.0 if rank is None else ALPHA / rank
    weight = numbers(*product.shape, seed=9)
    kernel = product.ndim - 2
    axes = tuple(range(1, product.ndim)) if not by_input else (0, *range(2, product.ndim))
    shape = (1, IN) if by_input else (OUT, 1)
    magnitude = numbers(*shape, *(1,) * kernel, seed=3).abs() + 0.5
    inner = wide(weight) + scale * product
    norm = np.sqrt((inner**2).sum(axis=axes, keepdims=True))
    wanted = wide(weight) + strength * (wide(magnitude) * inner / norm - wide(weight))
    told = {"alpha": torch.tensor(ALPHA), "dora_scale": magnitude}
    with opened(named(parts | told)) as file:
        (module,) = file.modules.values()
        assert module.form.startswith("dora-") and module.fits(weight.shape)
        assert file.delta(module, "weight").whole == by_input
        close(moved(file, module, weight, strength), wanted)


def test_dora_of_a_row_of_nothing_stays_nothing(opened):
    parts = {"lora_up.weight": torch.zeros(2, 1), "lora_down.weight": torch.ones(1, 3)}
    one = torch.ones(2)
    for part in ({"dora_scale": one[:, None]}, {"dora_scale": one}, {"lora_magnitude_vector": one}):
        with opened(named(parts | part)) as file:
            (module,) = file.modules.values()
            weight = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
            close(moved(file, module, weight), [[0.0, 0.0, 0.0], [0.6, 0.0, 0.8]])


def test_dora_divides_as_it_was_trained(opened):
    """A row of norm ε: LyCORIS adds float32's ε to the norm, PEFT nothing."""
    tiny = torch.finfo(torch.float32).eps
    parts = {"lora_up.weight": torch.zeros(1, 1), "lora_down.weight": torch.ones(1, 2)}
    one = torch.ones(1)
    for part, wanted in (({"dora_scale": one[:, None]}, 0.5), ({"lora_magnitude_vector": one}, 1)):
        with opened(named(parts | part)) as file:
            (module,) = file.modules.values()
            close(moved(file, module, torch.tensor([[tiny, 0.0]])), [[wanted, 0.0]])


def test_magnitudes_by_input_must_be_those_of_the_layer(opened):
    parts, product, _ = loha((OUT, IN, 3, 3))
    scale = torch.ones(1, IN * 3, 1, 1)  # Fits the columns of the file, but not the layer.
    with opened(named({**parts, "dora_scale": scale})) as file:
        (module,) = file.modules.values()
        assert not module.fits(product.shape) and module.fits((OUT, IN * 3, 1, 3))


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 3), (6,)])
def test_differences_and_norms(opened, shape):
    part, bias = ("w_norm", "b_norm") if len(shape) == 1 else ("diff", "diff_b")
    change, other = numbers(*shape), numbers(6, seed=4)
    with opened(named({part: change, bias: other})) as file:
        (module,) = file.modules.values()
        assert module.has_weight and module.has_bias and module.rank is None
        assert module.fits(shape) and not module.fits((6, 5))
        close(moved(file, module, torch.ones(shape), 0.5), 1 + 0.5 * wide(change))
        close(moved(file, module, torch.ones(6), 2.0, "bias"), 1 + 2 * wide(other))


def test_a_bias_beside_factors_and_alone(opened):
    parts, product, _ = lora((OUT, IN))
    tensors = named({**parts, "diff_b": torch.ones(OUT)}) | {f"{NAME}_x.diff_b": torch.ones(5)}
    with opened(tensors) as file:
        both, alone = file.modules.values()
        assert (both.has_weight, both.has_bias, file.is_thin(both)) == (True, True, False)
        assert (alone.has_weight, alone.has_bias, alone.form) == (False, True, "bias")
        assert alone.shape == (5, 1, 1, 1) and alone.fits((5, 7, 3, 3)) and not alone.fits((4, 5))
        close(moved(file, both, torch.zeros(OUT, IN)), product)
        close(moved(file, alone, torch.zeros(5), 3.0, "bias"), torch.full((5,), 3.0))


SIZES = st.integers(1, 7)


@settings(max_examples=60, deadline=None)
@given(
    out=SIZES,
    inner=SIZES,
    rank=SIZES,
    kernel=st.sampled_from([(), (1, 1), (3, 3), (1, 3)]),
    core=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    alpha=st.floats(-4, 4, width=16),
    strength=st.floats(-2, 2),
    seed=st.integers(0, 999),
)
def test_the_delta_equals_the_adapter(
    tmp_path_factory, out, inner, rank, kernel, core, dtype, alpha, strength, seed
):
    """x · (W + ΔW) = x · W + adapter(x), the adapter as the layers that it is trained as."""
    core, ones = core and bool(kernel), (1,) * len(kernel)
    parts = {
        "lora_down.weight": numbers(rank, inner, *(ones if core else kernel), seed=seed),
        "lora_up.weight": numbers(out, rank, *ones, seed=seed + 1),
        "alpha": torch.tensor(alpha),
    }
    if core:
        parts["lora_mid.weight"] = numbers(rank, rank, *kernel, seed=seed + 2)
    parts = {name: value.to(dtype) for name, value in parts.items()}
    weight = numbers(out, inner, *kernel, seed=seed + 3).double()
    apply = F.conv2d if kernel else F.linear
    x = numbers(2, inner, *((5, 4) if kernel else ()), seed=seed + 4).double()
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_file(named(parts), path)
    with open_loras([path]) as (file,):
        (module,) = file.modules.values()
        total = moved(file, module, weight, strength, block=2)
    route = apply(x, parts["lora_down.weight"].double())
    if core:
        route = apply(route, parts["lora_mid.weight"].double())
    route = apply(route, parts["lora_up.weight"].double())
    wanted = apply(x, weight) + strength * float(parts["alpha"]) / rank * route
    assert torch.allclose(apply(x, total), wanted, rtol=1e-4, atol=1e-4)


class Net(nn.Module):
    """A linear layer, a kernel and a 1x1, named as in a UNet."""

    def __init__(self):
        super().__init__()
        self.mid_block = nn.ModuleDict(
            {
                "conv1": nn.Conv2d(6, 8, 3),
                "proj_in": nn.Conv2d(8, 8, 1),
                "to_q": nn.Linear(8, 6),
                "to_k": nn.Linear(8, 12, bias=False),
            }
        )


ALL = ["conv1", "proj_in", "to_q", "to_k"]
PATTERNS = {
    "rank_pattern": {"to_q": 2, "mid_block.conv1": 5},
    "alpha_pattern": {"to_q": 7, r"mid_block\.(conv1|proj_in)": 1.5, "proj_in": 9},
}
PEFT = {
    "plain": LoraConfig(r=4, lora_alpha=6, target_modules=ALL),
    "patterns": LoraConfig(r=4, lora_alpha=6, target_modules=ALL, **PATTERNS),
    "rsLoRA": LoraConfig(r=4, lora_alpha=6, target_modules=ALL, use_rslora=True),
    "DoRA": LoraConfig(r=4, lora_alpha=6, target_modules=ALL, use_dora=True),
    "rsLoRA and DoRA": LoraConfig(
        r=3, lora_alpha=5, target_modules=ALL, use_dora=True, use_rslora=True
    ),
    "biases": LoraConfig(r=4, lora_alpha=6, target_modules=ALL[:3], lora_bias=True),
    "fan_in_fan_out": LoraConfig(
        r=4, lora_alpha=6, target_modules=["conv1", "proj_in"], fan_in_fan_out=True
    ),
    "LoHa": LoHaConfig(r=3, alpha=5, target_modules=ALL, alpha_pattern={"to_q": 2}),
    "LoHa of cores": LoHaConfig(r=3, alpha=5, target_modules=ALL, use_effective_conv2d=True),
    "LoKr": LoKrConfig(r=2, alpha=5, target_modules=ALL),
    "LoKr, all split": LoKrConfig(r=1, alpha=5, target_modules=ALL, decompose_both=True),
    "LoKr of cores": LoKrConfig(r=1, alpha=5, target_modules=ALL, use_effective_conv2d=True),
    "LoKr, whole": LoKrConfig(
        r=64, alpha=5, target_modules=ALL, decompose_factor=2, rank_pattern={"to_q": 32}
    ),
}


def trained(model, config, size=0.3):
    """The model with an adapter of random numbers, its magnitudes near what they were."""
    adapted = get_peft_model(model, config)
    for number, (key, value) in enumerate(adapted.named_parameters()):
        if any(part in key for part in ("lora_", "hada_", "lokr_")):
            noise = numbers(*value.shape, seed=number) * size
            value.data = value.data + noise if "magnitude" in key else noise
    return adapted


# peft takes its own bias of lora_B for a shard of a matrix, and warns.
@pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape.*lora_B.bias")
@pytest.mark.parametrize("setting", PEFT)
def test_a_folder_of_peft_equals_its_own_merge(tmp_path, setting):
    torch.manual_seed(0)
    net = Net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    adapted = trained(net, PEFT[setting])
    adapted.save_pretrained(tmp_path / "adapter")
    after = adapted.merge_and_unload().state_dict()
    changed = set()
    with open_loras([tmp_path / "adapter"]) as (file,):
        assert file.writer == "peft"
        for name, module in file.modules.items():
            layer = name.removeprefix("base_model.model.")
            for tensor, there in (("weight", module.has_weight), ("bias", module.has_bias)):
                if there:
                    key = f"{layer}.{tensor}"
                    assert tensor == "bias" or module.fits(before[key].shape)
                    assert not torch.allclose(before[key], after[key], atol=1e-3)
                    close(moved(file, module, before[key], tensor=tensor), after[key])
                    changed.add(key)
    assert changed == {key for key, value in after.items() if not value.equal(before[key])}
    assert len(changed) >= len(PEFT[setting].target_modules)


def test_a_unet_adapted_by_peft_equals_its_own_merge(tiny, load, state, tmp_path):
    """The whole way: PEFT's folder onto a single file, loaded by diffusers."""
    base = tiny("sd15")
    unet = load(base, dtype=torch.float32).unet
    adapted = trained(
        unet,
        LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=["to_q", "proj_in", "conv1", "conv2", "time_emb_proj", "linear_1"],
            use_dora=True,
            alpha_pattern={"to_q": 3.0},
            rank_pattern={"conv1": 2},
        ),
        0.05,
    )
    folder, out = tmp_path / "adapter", tmp_path / "merged.safetensors"
    adapted.save_pretrained(folder)
    merged = adapted.merge_and_unload().state_dict()
    report = merge(base.file, [Addend(folder, 1.0)], out, dtype="float32")
    ours = load(base, out, torch.float32).unet.state_dict()
    assert len(report.matched) > 40 and report.unmatched == ()
    for key, value in merged.items():
        assert torch.allclose(ours[key], value, rtol=1e-5, atol=2e-6), key


def test_forms_of_lycoris_merge_into_a_checkpoint(base, tmp_path):
    """LoHa, LoKr, a norm and a bias in one file, each on its own weight of a single file."""
    unet, prefix = "lora_unet_mid_block_", "model.diffusion_model."
    kernel = loha((32, 32, 3, 3))
    left, right = numbers(4, 4, seed=2), numbers(8, 8, seed=3)
    tensors = (
        named(kernel[0], f"{unet}resnets_0_conv1")
        | named({"lokr_w1": left, "lokr_w2": right}, f"{unet}attentions_0_proj_in")
        | named({"w_norm": torch.ones(32), "b_norm": torch.ones(32) * 2}, f"{unet}resnets_0_norm1")
    )
    path, out = tmp_path / "lycoris.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, path)
    merge(base.file, [Addend(path, 0.5)], out, dtype="float32")
    before, after = load_file(base.file), load_file(out)
    wanted = {
        f"{prefix}middle_block.0.in_layers.2.weight": 0.5 * kernel[1],
        f"{prefix}middle_block.1.proj_in.weight": 0.5 * kronecker(wide(left), wide(right)),
        f"{prefix}middle_block.0.in_layers.0.weight": 0.5,
        f"{prefix}middle_block.0.in_layers.0.bias": 1.0,
    }
    for key, value in after.items():
        delta = np.broadcast_to(np.asarray(wanted.get(key, 0.0)).reshape(-1), value.numel())
        close(value.reshape(-1), wide(before[key]).reshape(-1) + delta)


def test_dora_decomposes_what_came_before(base, lora, tmp_path):
    """A LoRA and a DoRA in one merge are the two merges, one after the other, in float32."""
    plain = lora(base, "plain", every=3)
    tensors = load_file(lora(base, "dora", seed=4))
    ups = [key for key in tensors if key.endswith("lora_up.weight")]
    for number, key in enumerate(ups):
        name, down = (
            key.removesuffix(".lora_up.weight"),
            tensors[key.replace("lora_up", "lora_down")],
        )
        size = (tensors[key].shape[0], 1) if number % 2 else (1, down.shape[1])
        scale = numbers(*size, *(1,) * (down.ndim - 2), seed=number).abs()
        tensors[f"{name}.dora_scale"] = scale
    save_file(tensors, tmp_path / "dora.safetensors")
    both = [Addend(plain, 0.7), Addend(tmp_path / "dora.safetensors", 0.5)]
    paths = [tmp_path / f"{n}.safetensors" for n in ("first", "then", "once")]
    merge(base.file, both[:1], paths[0], dtype="float32")
    merge(paths[0], both[1:], paths[1])
    merge(base.file, both, paths[2], dtype="float32")
    before, then, once = (load_file(path) for path in (base.file, *paths[1:]))
    assert sum(not torch.equal(v.float(), once[k].float()) for k, v in before.items()) > 30
    for key, value in then.items():
        assert torch.allclose(once[key].float(), value.float(), rtol=1e-6, atol=1e-7), key


@pytest.mark.parametrize("by_input", [False, True])
def test_dora_of_a_third_and_of_the_transposed_projection(tiny, load, tmp_path, by_input):
    """OpenCLIP's file has query, key and value in one tensor, and the projection turned."""
    base, tensors, layers = tiny("sdxl"), {}, {}
    for number, layer in enumerate(
        ("text_model.encoder.layers.1.self_attn.k_proj", "text_model.encoder.layers.0.mlp.fc2",
         "text_projection")
    ):  # fmt: skip
        parts, product, _ = lora((24, 24), 2 + number)
        magnitude = numbers(*((1, 24) if by_input else (24, 1)), seed=number).abs()
        name = f"lora_te2_{layer.replace('.', '_')}"
        tensors |= named({**parts, "dora_scale": magnitude}, name)
        layers[layer] = product, magnitude
    path, out = tmp_path / "dora.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, path)
    merge(base.file, [Addend(path, 1.0)], out, dtype="float32")
    before, after = (
        load(base, file, torch.float32).text_encoder_2.state_dict() for file in (base.file, out)
    )
    for key, value in before.items():
        layer = key.removesuffix(".weight")
        wanted = wide(value)
        found = next((known for known in layers if known.endswith(layer)), None)
        if found is not None and layer.endswith(("k_proj", "fc2", "text_projection")):
            product, magnitude = layers.pop(found)
            wanted = wanted + product
            norm = np.linalg.norm(wanted, axis=0 if by_input else 1, keepdims=True)
            wanted = wide(magnitude) * wanted / norm
        close(after[key], wanted)
    assert not layers
