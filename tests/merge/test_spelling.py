"""What LoRA files call the layers of the true models, checked on their published sizes."""

import json
import math
import re

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from merge import to_ldm
from merge.layout import look
from merge.spelling import dotted, kohya_names, spellings, standard_block

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
UNETS = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.fixture(scope="module")
def true_base(tmp_path_factory):
    """Checkpoints of the published sizes, all header: the file behind it has no blocks."""
    built = {}

    def build(family):
        if family not in built:
            with torch.device("meta"):
                vae = AutoencoderKL(
                    block_out_channels=(128, 256, 512, 512),
                    down_block_types=("DownEncoderBlock2D",) * 4,
                    up_block_types=("UpDecoderBlock2D",) * 4,
                    latent_channels=4,
                    layers_per_block=2,
                )
                models = [UNet2DConditionModel(**UNETS[family]), vae]
                models.append(CLIPTextModel(CLIPTextConfig(**CLIP_L)))
                if family == "sdxl":
                    config = CLIPTextConfig(**BIG_G, projection_dim=1280)
                    models.append(CLIPTextModelWithProjection(config))
            fields, end = {}, 0
            for key, tensor in to_ldm(*(model.state_dict() for model in models)).items():
                begin, end = end, end + 2 * math.prod(tensor.shape)
                shape = [*tensor.shape]
                fields[key] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
            header = json.dumps(fields).encode()
            path = tmp_path_factory.mktemp(family) / "base.safetensors"
            with open(path, "wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                file.truncate(file.tell() + end)
            built[family] = look(path)
        return built[family]

    return build


def adapted(base, network, convs):
    """The layers that kohya's trainer adapts by default, or with its 3x3 convolutions."""
    found = []
    for layer in base.layers.values():
        inside = ".attentions." in layer.name or network != "unet"
        ends = ("conv_in", "conv_out", "linear_1", "linear_2", "text_projection")
        if layer.network == network and len(layer.shape) > 1 and not layer.name.endswith(ends):
            found += [layer] * (inside or convs)
    return found


@pytest.mark.parametrize(
    ("family", "network", "linear", "all_layers"),
    [
        ("sd15", "unet", 192, 278),
        ("sd15", "te1", 72, 72),
        ("sdxl", "unet", 722, 788),
        ("sdxl", "te1", 72, 72),
        ("sdxl", "te2", 192, 192),
    ],
)
def test_counts_are_those_of_kohyas_trainer(true_base, family, network, linear, all_layers):
    """986 modules for SDXL: the number that its log prints."""
    base = true_base(family)
    assert base.family == family
    assert len(adapted(base, network, False)) == linear
    assert len(adapted(base, network, True)) == all_layers


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_name_without_a_base_means_what_the_base_says(true_base, family):
    base = true_base(family)
    assert base.spellings.keys() >= set(base.layers) - {
        name for name in base.layers if name.startswith("te")
    }
    sgm = re.compile(r"(lora_unet_|diffusion_model\.)(in|mid|out|time_embed_\d|label)")
    for spelled, name in base.spellings.items():
        if family == "sdxl" or not sgm.match(spelled):
            if spelled.startswith(("conv_", "time_embedding.", "add_embedding.")):
                assert dotted(spelled) is None  # Without a prefix: too little to tell.
            else:
                assert dotted(spelled) == name, spelled
    for name, layer in base.layers.items():
        names = kohya_names(name, family)
        assert names and all(base.spellings[spelled] == name for spelled in names)
        assert standard_block(name, family) == layer.block


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_first_name_is_kohyas(true_base, family):
    patterns = {
        "sd15": r"lora_unet_(down_blocks_[0-3]|mid_block|up_blocks_[0-3])_|lora_te_text_model_enc",
        "sdxl": r"lora_unet_(input_blocks_[1-8]|middle_block_[0-2]|output_blocks_[0-8])_"
        r"|lora_te[12]_text_model_encoder_layers_\d+_",
    }
    base = true_base(family)
    firsts = {
        kohya_names(layer.name, family)[0]
        for network in ("unet", "te1", "te2")
        for layer in adapted(base, network, True)
    }
    assert len(firsts) == {"sd15": 350, "sdxl": 1052}[family]
    assert all(re.match(patterns[family], name) for name in firsts)


LAYER = "te1.text_model.encoder.layers.11.mlp.fc2"


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0",
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
        ),
        ("lora_unet_input_blocks_3_0_op", "unet.down_blocks.0.downsamplers.0.conv"),
        ("lora_unet_output_blocks_5_2_conv", "unet.up_blocks.1.upsamplers.0.conv"),
        ("lora_unet_middle_block_2_emb_layers_1", "unet.mid_block.resnets.1.time_emb_proj"),
        ("lora_unet_out_2", "unet.conv_out"),
        ("lora_unet_up_blocks_3_resnets_2_norm1", "unet.up_blocks.3.resnets.2.norm1"),
        ("lora_te_text_model_encoder_layers_11_mlp_fc2", LAYER),
        ("lora_te1_encoder_layers_11_mlp_fc2", LAYER),
        ("base_model.model.text_model.encoder.layers.11.mlp.fc2", LAYER),
        ("base_model.model.encoder.layers.11.mlp.fc2", LAYER),
        ("text_encoder_2.encoder.layers.3.mlp.fc1", "te2.text_model.encoder.layers.3.mlp.fc1"),
        ("text_encoders.clip_g.transformer.text_projection", "te2.text_projection"),
        ("mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("lora_unet_input_blocks_20_1_proj_in", None),
        ("lora_unet_double_blocks_0_img_attn_proj", None),
        ("lora_unet_", None),
        ("lora_unet__conv1", None),
        ("lora_unet_conv1_", None),
        ("unet.mid_block.attentions.0.stranger", None),
        ("model.diffusion_model.out.2", None),
        ("", None),
    ],
)
def test_dotted(name, layer):
    assert dotted(name) == layer


MODULES = st.sampled_from(
    [
        "down_blocks.{}.attentions.{}.transformer_blocks.{}.attn2.to_k",
        "up_blocks.{}.attentions.{}.transformer_blocks.{}.ff.net.0.proj",
        "up_blocks.{}.resnets.{}.conv_shortcut",
        "down_blocks.{}.resnets.{}.time_emb_proj",
        "down_blocks.{}.downsamplers.0.conv",
        "mid_block.attentions.0.norm",
    ]
)


@given(MODULES, st.lists(st.integers(0, 99), min_size=3, max_size=3))
def test_diffusers_names_need_no_standard_size(module, numbers):
    name = f"unet.{module.format(*numbers)}"
    for family in ("sd15", "sdxl"):
        for spelled in spellings(name, "elsewhere.0", family):
            if "elsewhere" not in spelled:
                assert dotted(spelled) == name
