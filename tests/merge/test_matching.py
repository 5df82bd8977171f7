"""Which module reaches which rows of which tensor, how strongly; what finds nothing is told."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge import Addend, MergeError
from merge.layout import look
from merge.lora import open_loras
from merge.matching import match
from merge.strength import Strength

TE2 = "conditioner.embedders.1.model."


def factors(name, rows, columns):
    return {
        f"{name}.lora_up.weight": torch.ones(rows, 1),
        f"{name}.lora_down.weight": torch.ones(1, columns),
    }


@pytest.fixture
def matched(tmp_path):
    """matched(base, tensors of a LoRA…, strengths=…): what `match` gives for files of them."""

    def run(base, *contents, strengths=None, allow_unmatched=False):
        paths = [tmp_path / f"{number}.safetensors" for number in range(len(contents))]
        for path, tensors in zip(paths, contents, strict=True):
            save_file(tensors, path)
        strengths = strengths or [1.0] * len(paths)
        addends = [Addend(*pair) for pair in zip(paths, strengths, strict=True)]
        with open_loras(paths) as files:
            return match(look(base), addends, files, allow_unmatched)

    return run


def test_thirds_and_the_projection(tiny, matched):
    lora = {}
    for name in ("k", "v"):
        lora |= factors(f"lora_te2_text_model_encoder_layers_1_self_attn_{name}_proj", 24, 24)
    lora |= factors("lora_te2_text_projection", 24, 24)
    (uses,), lost = matched(tiny("sdxl").file, lora)
    assert lost == ()
    third = f"{TE2}transformer.resblocks.1.attn.in_proj_weight"
    assert uses.keys() == {third, f"{TE2}text_projection"}
    assert [(use.place.first, use.place.rows) for use in uses[third]] == [(24, 24), (48, 24)]
    assert not uses[third][0].place.transposed
    (projection,) = uses[f"{TE2}text_projection"]
    assert projection.place.transposed and projection.tensor == "weight"


def test_order_and_strengths(tiny, matched):
    """Per network and block, in the order of the addends."""
    text = "lora_te2_text_model_encoder_layers_0_mlp_"
    first = factors("lora_unet_mid_block_attentions_0_proj_in", 24, 24)
    first |= factors(f"{text}fc1", 24, 24) | factors(
        "lora_unet_input_blocks_4_0_emb_layers_1", 16, 32
    )
    second = factors("lora_unet_middle_block_1_proj_in", 24, 24)
    strength = Strength(0.5, 2.0, 3.0, {"M00": 0.25})
    (uses,), _ = matched(tiny("sdxl").file, second, first, strengths=[0.0, strength])
    key = "model.diffusion_model.middle_block.1.proj_in.weight"
    assert [(use.addend, use.strength) for use in uses[key]] == [(0, 0.0), (1, 0.125)]
    assert [use.strength for use in uses[f"{TE2}transformer.resblocks.0.mlp.c_fc.weight"]] == [3.0]
    key = "model.diffusion_model.input_blocks.4.0.emb_layers.1.weight"
    assert [use.strength for use in uses[key]] == [0.5]


def test_biases_norms_and_copies(tiny, matched, tmp_path):
    base, name = tmp_path / "base.safetensors", "model.diffusion_model.middle_block.0.in_layers.0"
    tensors = load_file(tiny("tiny").file)
    twin = "model_ema.diffusion_modelmiddle_block0in_layers0weight"
    save_file({**tensors, twin: tensors[f"{name}.weight"].clone()}, base)
    norm = "lora_unet_mid_block_resnets_0_norm1"
    (uses,), _ = matched(base, {f"{norm}.w_norm": torch.ones(32), f"{norm}.b_norm": torch.ones(32)})
    assert {key: [use.tensor for use in there] for key, there in uses.items()} == {
        f"{name}.weight": ["weight"],
        f"{name}.bias": ["bias"],
        twin: ["weight"],
    }
    (uses,), _ = matched(base, {"lora_unet_conv_out.diff_b": torch.ones(4)})
    assert {key: use[0].tensor for key, use in uses.items()} == {
        "model.diffusion_model.out.2.bias": "bias"
    }


CROSS = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (factors("lora_unet_mid_block_resnets_9_conv1", 2, 2), "1 of 1 modules.*resnets_9_conv1"),
        ({f"{CROSS}.diff_b": torch.ones(32)}, r"attn1_to_q .a bias"),
        (factors(CROSS, 33, 32), "33 × 32 × 1 × 1.*is 32 × 32 × 1 × 1.*another size"),
        (factors(CROSS, 32, 1), "32 × 1 × 1 × 1"),
        (factors("lora_unet_mid_block_resnets_0_conv1", 32, 32), "is 32 × 32 × 3 × 3"),
        ({"lora_unet_conv_out.diff_b": torch.ones(5)}, "lora_unet_conv_out"),
        (
            factors(CROSS, 32, 32) | factors("lora_unet_middle_block_1_proj_in", 32, 32),
            "SDXL LoRA",
        ),
        (
            factors("lora_te_text_model_encoder_layers_0_mlp_fc1", 24, 16)
            | factors("lora_te1_text_model_encoder_layers_0_mlp_fc1", 24, 16),
            "names one layer twice",
        ),
        (factors("lora_te2_text_model_encoder_layers_0_mlp_fc1", 24, 24), "SDXL LoRA"),
    ],
)  # fmt: skip
def test_what_finds_no_place(tiny, matched, tensors, words):
    with pytest.raises(MergeError, match=words) as caught:
        matched(tiny("tiny").file, tensors)
    assert caught.value.exit_code == 2 and "0.safetensors" in str(caught.value)


def test_what_may_be_left_out_and_what_not(tiny, matched):
    base, lora = tiny("tiny").file, factors(CROSS, 32, 32)
    stranger = factors("lora_unet_mid_block_resnets_9_conv1", 2, 2)
    (uses,), lost = matched(base, lora | stranger, allow_unmatched=True)
    assert len(uses) == 1 and len(lost) == 1 and lost[0].endswith("mid_block_resnets_9_conv1")
    other = factors("lora_te2_text_model_encoder_layers_0_mlp_fc1", 24, 24)
    with pytest.raises(MergeError, match="SDXL LoRA"):
        matched(base, lora | other, allow_unmatched=True)
    with pytest.raises(MergeError, match="do not fit"):
        matched(base, factors(CROSS, 33, 32), allow_unmatched=True)


def test_too_coarse_a_weight_is_refused_only_where_it_is_reached(tiny, matched, tmp_path):
    base, tensors = tmp_path / "base.safetensors", load_file(tiny("tiny").file)
    key = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    save_file({**tensors, key: tensors[key].to(torch.float8_e4m3fn)}, base)
    assert matched(base, factors(CROSS, 32, 32))[0][0]
    conv = {
        "lora_unet_mid_block_resnets_0_conv1.lora_up.weight": torch.ones(32, 1, 1, 1),
        "lora_unet_mid_block_resnets_0_conv1.lora_down.weight": torch.ones(1, 32, 3, 3),
    }
    with pytest.raises(MergeError, match="F8_E4M3"):
        matched(base, conv)
