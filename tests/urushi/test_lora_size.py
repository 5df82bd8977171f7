"""The size that `plan` states is the size that training writes."""

from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from pipeline.recipe.base import Base
from pipeline.recipe.lora import Lora
from pipeline.train.adapter import attach, factors
from pipeline.train.denoiser import Denoiser
from urushi.lora_size import lora_bytes


@pytest.mark.parametrize(
    "lora",
    [
        Lora(rank=4),
        Lora(rank=4, conv_rank=2),
        Lora(rank=4, preset="attn-mlp"),
        Lora(rank=4, conv_rank=2, dora=True),
        Lora(rank=4, conv_rank=2, blocks="IN01, M00, OUT00-01"),
        Lora(rank=4, conv_rank=2, block_ranks="M00=8", block_conv_ranks="IN03=0, M00=4"),
    ],
)
def test_it_is_what_training_writes(tmp_path: Path, lora: Lora) -> None:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    folder = tmp_path / "base"
    (folder / "unet").mkdir(parents=True)
    save_file(unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    base = Base(checkpoint=folder)
    network = Denoiser(unet)
    attach(network, lora, seed=1)
    trained = factors(network)
    assert lora_bytes(base, lora) == sum(t.numel() * 4 for t in trained.values())


def test_without_a_base_it_is_unknown(tmp_path: Path) -> None:
    assert lora_bytes(Base(checkpoint=tmp_path / "none.safetensors"), Lora()) is None
    (tmp_path / "text.safetensors").write_text("no checkpoint")
    assert lora_bytes(Base(checkpoint=tmp_path / "text.safetensors"), Lora()) is None
