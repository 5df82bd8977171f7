"""A LoRA of another model, or a file that is none, is called by its name before any work."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge import MergeError
from merge.families import family_of_lora, refuse_other_family, what_is
from merge.layout import look


@dataclass
class Module:
    shape: tuple


@dataclass
class File:
    modules: dict
    path: Path = Path("my.safetensors")


def lora(*names, width=16):
    return File({name: Module((8, width, 1, 1)) for name in names})


CROSS = "transformer_blocks_0_attn2_to_k"
DOTTED = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"


@pytest.mark.parametrize(
    ("file", "family"),
    [
        (lora("lora_te_text_model_encoder_layers_0_mlp_fc1"), "sd15"),
        (lora("lora_te1_text_model_encoder_layers_0_mlp_fc1"), None),
        (lora("lora_te2_text_model_encoder_layers_0_mlp_fc1"), "sdxl"),
        (lora("text_encoder_2.text_model.encoder.layers.0.mlp.fc1"), "sdxl"),
        (lora("lora_unet_mid_block_resnets_0_conv1"), None),
        (lora("lora_unet_middle_block_0_in_layers_2"), "sdxl"),
        (lora("unet.add_embedding.linear_1"), "sdxl"),
        (lora(f"lora_unet_down_blocks_1_attentions_0_{CROSS}", width=768), "sd15"),
        (lora(f"lora_unet_down_blocks_1_attentions_0_{CROSS}", width=2048), "sdxl"),
        (lora(DOTTED, width=768), "sd15"),
        (lora(DOTTED, width=2048), "sdxl"),
        (lora(DOTTED, width=40), None),
        # A width speaks of cross-attention only.
        (lora("unet.mid_block.resnets.0.time_emb_proj", width=2048), None),
    ],
)
def test_family_of_lora(file, family):
    assert family_of_lora(file) == family


@pytest.mark.parametrize(
    ("name", "width", "model"),
    [
        ("lora_unet_double_blocks_0_img_attn_proj", 8, "Flux"),
        ("transformer.single_transformer_blocks.3.attn.to_q", 8, "Flux"),
        ("lora_transformer_single_transformer_blocks_0_attn_to_q", 8, "Flux"),
        ("diffusion_model.double_blocks.0.img_attn.proj", 8, "Flux"),
        ("lora_unet_joint_blocks_0_x_block_attn_proj", 8, "SD 3"),
        ("transformer.transformer_blocks.0.attn.to_q", 8, "SD 3, Flux or PixArt"),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_k", 8, "SD 3 or Flux"),
        ("lora_prior_unet_down_blocks_0", 8, "Stable Cascade"),
        ("lora_unet_blocks_0_self_attn_q", 8, "a transformer model"),
        ("diffusion_model.blocks.0.self_attn.q", 8, "a transformer model"),
        (f"lora_unet_down_blocks_1_attentions_0_{CROSS}", 1024, "SD 2"),
    ],
)
def test_other_models(name, width, model):
    with pytest.raises(MergeError, match=f"my.safetensors is a LoRA for {model} .*{name}"):
        family_of_lora(lora(name, width=width))


def test_the_other_family_is_refused(tiny):
    sd15, sdxl = look(tiny("tiny").file), look(tiny("sdxl").file)
    text, text_2 = (f"lora_te{n}_text_model_encoder_layers_0_mlp_fc1" for n in ("", "2"))
    refuse_other_family(lora(text), sd15)
    refuse_other_family(lora(text_2), sdxl)
    refuse_other_family(lora("lora_unet_mid_block_resnets_0_conv1"), sdxl)
    with pytest.raises(MergeError, match=r"is an SDXL LoRA; .* is SD 1\.5\."):
        refuse_other_family(lora(text_2), sd15)
    with pytest.raises(MergeError, match=r"is an SD 1\.5 LoRA; .* is SDXL\."):
        refuse_other_family(lora(text), sdxl)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["lora_unet_mid_block_resnets_0_conv1.lora_up.weight"], "a LoRA"),
        (["unet.mid_block.attentions.0.proj_in.lora_A.weight"], "a LoRA"),
        (["base_model.model.conv1.lora_B.weight"], "a LoRA"),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x"], "a ControlNet"),
        (["model.diffusion_model.double_blocks.0.img_attn.proj.weight"], "a Flux model"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight"], "an SD 3 model"),
        (["model.diffusion_model.out.2.weight"], "a Stable Diffusion checkpoint"),
        (["down_blocks.0.resnets.0.conv1.weight"], "a UNet alone"),
        (["first_stage_model.decoder.conv_in.weight"], "a VAE"),
        (["decoder.up.0.block.0.conv1.weight"], "a VAE"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "a text encoder"),
        (["emb_params"], "a textual inversion"),
        (["stranger"], "something else"),
        ([], "something else"),
    ],
)
def test_what_is(keys, kind):
    assert what_is(keys) == kind


def _renamed(old, new):
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


UNET = "model.diffusion_model."
BASES = {
    "a ControlNet": (_renamed(UNET, "control_model."), "it is a ControlNet"),
    "a UNet": (
        lambda t: {k.removeprefix(UNET): v for k, v in t.items() if k.startswith(UNET)},
        "it is a UNet alone.*the pipeline's folder",
    ),
    "SD 2": (_renamed("cond_stage_model.transformer.", "cond_stage_model.model."), "an SD 2 check"),
    "a refiner": (
        lambda t: {**t, "conditioner.embedders.0.model.ln_final.weight": torch.ones(2)},
        "an SDXL refiner",
    ),
}


@pytest.mark.parametrize("name", BASES)
def test_bases_that_are_none(tiny, tmp_path, name):
    change, words = BASES[name]
    save_file(change(load_file(tiny("tiny").file)), tmp_path / "base.safetensors")
    with pytest.raises(MergeError, match=words) as caught:
        look(tmp_path / "base.safetensors")
    assert str(tmp_path) in str(caught.value) and caught.value.exit_code == 2


def test_a_folder_of_sd2(tiny, tmp_path):
    folder = tmp_path / "pipeline"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    unet = tiny("tiny").unet.state_dict()
    for key in [key for key in unet if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]:
        unet[key] = torch.ones(unet[key].shape[0], 1024)
    save_file(unet, folder / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(MergeError, match="an SD 2 pipeline"):
        look(folder)


def test_a_file_of_the_unet_alone_tells_its_family(tiny, tmp_path):
    tensors = load_file(tiny("sdxl").file)
    save_file({k: v for k, v in tensors.items() if k.startswith(UNET)}, tmp_path / "a.safetensors")
    base = look(tmp_path / "a.safetensors")
    assert base.family == "sdxl" and {layer.network for layer in base.layers.values()} == {"unet"}
