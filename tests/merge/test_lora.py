"""What adapter files are read as: names, alphas told beside the tensors, and what is refused."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file

from merge import MergeError
from merge.adapter_config import Pattern
from merge.forms import LowRank
from merge.lora import open_loras

NAME = "lora_unet_mid_block_resnets_0_conv1"
DOTTED = "unet.mid_block.attentions.0.proj_in"
OUT, IN = 12, 8
UP, DOWN = torch.ones(OUT, 4), torch.ones(4, IN)
PLAIN = {"lora_up.weight": UP, "lora_down.weight": DOWN}
HADA = {
    **{f"hada_w{side}_a": torch.ones(OUT, 3) for side in "12"},
    **{f"hada_w{side}_b": torch.ones(3, IN) for side in "12"},
}
KRON = {
    "lokr_w1_a": torch.ones(3, 2),
    "lokr_w1_b": torch.ones(2, 2),
    "lokr_w2_a": torch.ones(4, 2),
    "lokr_w2_b": torch.ones(2, 4),
}
WHOLE = {"lokr_w1": torch.ones(3, 2), "lokr_w2": torch.ones(4, 4)}
F8 = torch.float8_e4m3fn


def named(parts, name=NAME):
    # Copies: safetensors does not save two tensors of one memory.
    return {f"{name}.{part}": value.clone().contiguous() for part, value in parts.items()}


@settings(max_examples=200, deadline=None)
@given(
    keys=st.lists(
        st.sampled_from(["to_q", "q", "a.to_q", "b.a.to_q", r"(a|c)\.to_.", "to_[qk]", "b", ".*"]),
        max_size=4,
        unique=True,
    ),
    name=st.sampled_from(["b.a.to_q", "a.to_q", "to_q", "c.to_k", "xa.to_q", "b"]),
)
def test_patterns_are_read_as_peft_reads_them(keys, name):
    wanted = get_pattern_key(keys, name)
    numbers_of = {key: float(number) for number, key in enumerate(keys)}
    assert Pattern(numbers_of).of(name) == numbers_of.get(wanted)


@pytest.mark.parametrize(("rslora", "root"), [(False, 4), (True, 2)])
def test_alphas_in_the_metadata_of_diffusers(opened, rslora, root):
    parts = {"lora_A.weight": DOWN, "lora_B.weight": UP}
    other = "unet.mid_block.attentions.1.proj_in"
    fields = {
        "unet.r": 4,
        "unet.lora_alpha": 2,
        "unet.use_rslora": rslora,
        "unet.alpha_pattern": {"mid_block.attentions.1.proj_in": 6},
    }
    text = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    tensors = named(parts, DOTTED) | named(parts, other) | named(parts, text)
    with opened(tensors, {"lora_adapter_metadata": json.dumps(fields)}) as file:
        assert file.writer == "diffusers" and file.modules.keys() == {DOTTED, other, text}
        for name, scale in ((DOTTED, 2 / root), (other, 6 / root), (text, 1.0)):
            delta = file.delta(file.modules[name], "weight").rows(torch.zeros(OUT, IN), 0, 1.0)
            assert torch.allclose(delta, torch.full((OUT, IN), 4 * scale))
            assert file.thin(file.modules[name]).scale == pytest.approx(scale)


@pytest.mark.parametrize(
    ("down", "up", "name", "writer"),
    [
        ("lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight", "lora_unet_x", "kohya"),
        ("unet.x.lora_A.weight", "unet.x.lora_B.weight", "unet.x", "diffusers"),
        ("unet.x.lora.down.weight", "unet.x.lora.up.weight", "unet.x", "diffusers"),
        (
            "unet.attn1.processor.to_q_lora.down.weight",
            "unet.attn1.processor.to_q_lora.up.weight",
            "unet.attn1.processor.to_q",
            "diffusers",
        ),
        (
            "text_encoder.q_proj.lora_linear_layer.down.weight",
            "text_encoder.q_proj.lora_linear_layer.up.weight",
            "text_encoder.q_proj",
            "diffusers",
        ),
        (
            "diffusion_model.out.2.lora_down.weight",
            "diffusion_model.out.2.lora_up.weight",
            "diffusion_model.out.2",
            "diffusers",
        ),
        ("unet.x.lora_A.default.weight", "unet.x.lora_B.default.weight", "unet.x", "diffusers"),
        ("base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight", None, "peft"),
    ],
)
def test_every_writers_names(opened, down, up, name, writer):
    with opened({down: torch.ones(1, 3), up: torch.ones(2, 1)}) as file:
        (module,) = file.modules.values()
        assert module.name == (name or "base_model.model.x") and file.writer == writer
        assert module.entries.keys() == {"down", "up"} and module.entries["down"].name == down
        assert file.is_thin(module) and module.form == "lora" and module.rank == 1
        assert isinstance(file.delta(module, "weight"), LowRank)


def test_float64_factors_stay_so(opened):
    parts = {
        "lora_up.weight": torch.full((2, 1), 0.1, dtype=torch.float64),
        "lora_down.weight": torch.ones(1, 3),
    }
    with opened(named(parts)) as file:
        factors = file.thin(file.modules[NAME])
        assert factors.up.dtype == factors.down.dtype == torch.float64
        assert factors.up.equal(parts["lora_up.weight"])


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.uint8])
@pytest.mark.parametrize("alpha", [1, 100])
def test_an_alpha_may_be_a_whole_number(opened, dtype, alpha):
    """kohya's trainer stores one that was not given, the rank, as int64."""
    with opened(named({**PLAIN, "alpha": torch.tensor(alpha, dtype=dtype)})) as file:
        assert file.thin(file.modules[NAME]).scale == alpha / 4


def test_a_negative_whole_alpha_keeps_its_sign(opened):
    with opened(named({**PLAIN, "alpha": torch.tensor(-2)})) as file:
        assert file.thin(file.modules[NAME]).scale == -0.5


BROKEN = {
    "no up": ({"lora_down.weight": DOWN}, "lacks lora_up"),
    "no down": ({"lora_up.weight": UP}, "lacks lora_down"),
    "no lora_A": ({"lora_B.weight": UP}, "lacks lora_down .lora_A of PEFT"),
    "alpha alone": ({"alpha": torch.ones(())}, "lacks lora_down"),
    "dora_scale alone": ({"dora_scale": torch.ones(OUT, 1)}, "lacks lora_down"),
    "ranks": (
        {"lora_up.weight": UP[:, :3], "lora_down.weight": DOWN},
        r"up \[12, 3\]",
    ),
    "rank 0": ({"lora_up.weight": UP[:, :0], "lora_down.weight": DOWN[:0]}, "shape"),
    "three dimensions": ({**PLAIN, "lora_down.weight": DOWN[:, :, None]}, "shape"),
    "a kernel up": ({**PLAIN, "lora_up.weight": torch.ones(OUT, 4, 3, 3)}, "do not fit"),
    "a core of another rank": ({**PLAIN, "lora_mid.weight": torch.ones(3, 4, 3, 3)}, "Tucker"),
    "two alphas": ({**PLAIN, "alpha": torch.ones(2)}, r"alpha.*shape \[2\]"),
    "eight bits": ({**PLAIN, "lora_up.weight": UP.to(F8)}, r"lora_up.weight.*F8_E4M3"),
    "whole numbers": ({**PLAIN, "lora_up.weight": UP.int()}, r"lora_up.weight.*I32"),
    "an alpha of truths": ({**PLAIN, "alpha": torch.tensor(True)}, r"alpha.*BOOL"),
    "a whole dora_scale": ({**PLAIN, "dora_scale": torch.ones(OUT, 1).int()}, r"dora_scale.*I32"),
    "magnitudes": ({**PLAIN, "dora_scale": torch.ones(5, 1)}, r"dora_scale.*\[5, 1\]"),
    "magnitudes of inputs": ({**PLAIN, "dora_scale": torch.ones(1, 4)}, r"dora_scale.*\[1, 4\]"),
    "magnitudes of PEFT": ({**PLAIN, "lora_magnitude_vector": torch.ones(IN)}, "magnitude.*DoRA"),
    "a bias too long": ({**PLAIN, "diff_b": torch.ones(OUT + 1)}, "diff_b .13"),
    "LoHa, half": ({k: v for k, v in HADA.items() if k != "hada_w2_a"}, "lacks hada_w2_a of LoHa"),
    "LoHa, ranks": ({**HADA, "hada_w2_a": torch.ones(OUT, 2)}, "LoHa"),
    "LoHa, sizes": ({**HADA, "hada_w2_a": torch.ones(OUT + 1, 3)}, "LoHa"),
    "LoHa, a core": ({**HADA, "hada_t1": torch.ones(3, 3, 3, 3)}, "lacks hada_t1 or hada_t2"),
    "LoKr, half": ({k: v for k, v in KRON.items() if k != "lokr_w1_b"}, "lacks lokr_w1 or"),
    "LoKr, ranks": ({**KRON, "lokr_w1_b": torch.ones(3, 2)}, "LoKr .the ranks differ"),
    "LoKr, two ranks": (
        {**KRON, "lokr_w1_a": torch.ones(3, 1), "lokr_w1_b": torch.ones(1, 2)},
        "different ranks",
    ),
    "LoKr, a core": (
        {
            "lokr_w1": torch.ones(3, 2),
            "lokr_w2_a": torch.ones(2, 4),
            "lokr_w2_b": torch.ones(2, 4),
            "lokr_t2": torch.ones(3, 2, 3, 3),
        },
        "LoKr .the ranks differ",
    ),
    "LoKr, twice": ({**KRON, "lokr_w1": torch.ones(3, 2)}, "given twice"),
    "two forms": ({**PLAIN, "diff": torch.ones(OUT, IN)}, "as LoRA and as full differences"),
    "half of a second form": ({**PLAIN, "hada_w1_a": UP}, "hada_w1_b of LoHa"),
    "two layouts": ({**PLAIN, "lora_A.weight": DOWN}, "says the same twice"),
    "a scaled difference": ({"diff": UP, "alpha": torch.ones(())}, r"alpha.*full differences"),
    "OFT": ({**PLAIN, "oft_blocks": UP}, "OFT"),
    "GLoRA": ({"a1.weight": UP, "b1.weight": UP}, "GLoRA"),
    "IA3": ({"on_input": torch.ones(()), "weight": UP}, "IA3"),
    "an embedding": ({**PLAIN, "lora_embedding_A": UP}, "embedding"),
    "a stranger": ({**PLAIN, "what": UP}, f"{NAME}.what"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_modules_are_refused_by_name(opened, kind):
    parts, words = BROKEN[kind]
    with pytest.raises(MergeError, match=words) as caught, opened(named(parts)):
        pass
    assert NAME in str(caught.value) and "adapter.safetensors" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("part", ["lora_up.weight", "alpha", "scalar", "dora_scale", "diff_b"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none(opened, part, value):
    parts = {
        **PLAIN,
        "alpha": torch.ones(()),
        "scalar": torch.ones(()),
        "dora_scale": torch.ones(OUT, 1),
        "diff_b": torch.ones(OUT),
    }
    parts[part] = torch.full_like(parts[part], value)
    with opened(named(parts)) as file, pytest.raises(MergeError, match=f"{part}.*holds NaN"):
        for tensor in ("weight", "bias"):
            file.delta(file.modules[NAME], tensor)


def test_a_bundled_embedding_and_a_checkpoint_are_named(opened):
    with pytest.raises(MergeError, match=r"a bundled embedding.*bundle_emb\.x"):
        opened({"bundle_emb.x": UP}).__enter__()
    with pytest.raises(MergeError, match=r"a VAE.*place of a LoRA"):
        opened({"first_stage_model.encoder.conv_in.weight": UP}).__enter__()


CONFIGS = {
    "not JSON": ("{", "not JSON"),
    "a list": ("[]", "not a table"),
    "another form": ({"peft_type": "OFT"}, "'OFT'"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "changed the base"),
    "copied layers": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha"),
    "alpha no number": ({"lora_alpha": True}, "lora_alpha"),
    "alpha NaN": ({"lora_alpha": math.nan}, "lora_alpha"),
    "alpha beyond floats": ({"lora_alpha": 10**400}, "lora_alpha"),
    "rank 0": ({"r": 0}, "whole number of at least 1"),
    "a pattern no table": ({"alpha_pattern": [1]}, "alpha_pattern"),
    "a pattern of texts": ({"alpha_pattern": {"x": "1"}}, "alpha_pattern"),
    "a pattern of no ranks": ({"rank_pattern": {"x": 0}}, "rank_pattern"),
    "a pattern that is none": (
        {"alpha_pattern": {"(": 1}},
        "a pattern that is none",
    ),
    "a rank of other tensors": ({"r": 8}, "has rank 4, but .* says 8"),
    "a pattern of other tensors": ({"rank_pattern": {"x|proj_in": 2}}, "rank 4, but .* says 2"),
    "DoRA without magnitudes": ({"use_dora": True}, "lacks lora_magnitude_vector"),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("place", ["folder", "metadata"])
def test_configurations_that_cannot_be_followed(opened, tmp_path, kind, place):
    fields, words = CONFIGS[kind]
    if isinstance(fields, dict):
        fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, **fields}
    if place == "metadata":
        if isinstance(fields, dict):
            fields = {f"unet.{key}": value for key, value in fields.items()}
        told = {"lora_adapter_metadata": fields if isinstance(fields, str) else json.dumps(fields)}
        with pytest.raises(MergeError, match=words):
            opened(named(PLAIN, DOTTED), told).__enter__()
        return
    tensors = {"base_model.model.x.lora_A.weight": DOWN, "base_model.model.x.lora_B.weight": UP}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = tmp_path / "adapter_config.json"
    config.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    with pytest.raises(MergeError, match=words) as caught, open_loras([tmp_path]):
        pass
    assert str(tmp_path) in str(caught.value) and caught.value.exit_code == 2
    config.unlink()
    with pytest.raises(MergeError, match="a folder without adapter_model"), open_loras([tmp_path]):
        pass


def test_the_tensors_of_peft_alone_do_not_say_their_scale(tmp_path):
    tensors = {"base_model.model.x.lora_A.weight": DOWN, "base_model.model.x.lora_B.weight": UP}
    weights, config = tmp_path / "adapter_model.safetensors", {"r": 4, "lora_alpha": 16}
    save_file(tensors, weights)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(MergeError, match=f"Name the folder that holds both, {tmp_path}"):
        open_loras([weights]).__enter__()
    with open_loras([tmp_path]) as (file,):
        assert file.thin(file.modules["base_model.model.x"]).scale == 4


@pytest.mark.parametrize(
    ("parts", "form"),
    [
        ({**PLAIN, "lora_mid.weight": torch.ones(4, 4, 3, 3)}, "Tucker"),
        ({**PLAIN, "dora_scale": torch.ones(OUT, 1)}, "DoRA of LoRA"),
        ({**PLAIN, "diff_b": torch.ones(OUT)}, "LoRA with a bias"),
        (HADA, "LoHa"),
        (KRON, "LoKr"),
        ({"diff": UP}, "full differences"),
        ({"w_norm": torch.ones(3)}, "a norm's differences"),
        ({"b_norm": torch.ones(3)}, "of a bias"),
    ],
)
def test_thin_refuses_what_has_no_two_factors(opened, parts, form):
    with opened(named(parts)) as file:
        module = file.modules[NAME]
        assert not file.is_thin(module)
        for act in (file.thin, file.refuse_unless_thin):
            with pytest.raises(MergeError, match=f"{NAME}.*{form}"):
                act(module)


def test_a_scale_that_the_file_does_not_hold(opened):
    """LyCORIS' rs_lora of two whole factors scales by the root of a dim that it does not store."""
    tensors = named({**WHOLE, "alpha": torch.tensor(8.0)})
    with opened(tensors, {"ss_network_args": '{"algo": "lokr", "rs_lora": "False"}'}):
        pass
    with pytest.raises(MergeError, match=f"{NAME}.*rs_lora"):
        opened(tensors, {"ss_network_args": '{"algo": "lokr", "rs_lora": "True"}'}).__enter__()
    split = named({**KRON, "alpha": torch.tensor(8.0)})
    with opened(split, {"ss_network_args": '{"algo": "lokr", "rs_lora": "True"}'}):
        pass
