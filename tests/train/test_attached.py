"""LoRAs from files beside one another: a network as of the weights that they would make."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from pipeline.errors import RequestError
from pipeline.recipe.lora import Lora
from pipeline.train.adapter import attach, save_lora, trainable
from pipeline.train.attached import AttachedLoras


def new_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=8,
    ).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.tensor([10, 700]),
        torch.randn(2, 77, 24, generator=generator),
    )


def lora_file(path: Path, lora: Lora, seed: int) -> Path:
    unet = new_unet()
    attach(unet, lora, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable(unet):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    save_lora(unet, path, {})
    return path


def test_several_at_their_strengths_are_the_sum_of_their_deltas(tmp_path: Path) -> None:
    """Of other ranks, alphas and layers: one covers convolutions, the other does not."""
    first = lora_file(tmp_path / "a.safetensors", Lora(rank=4, alpha=2, conv_rank=3), 1)
    second = lora_file(tmp_path / "b.safetensors", Lora(rank=2), 2)
    merged, attached = new_unet(), new_unet()
    loras = AttachedLoras(attached, [first, second])
    for strengths in ((0.7, -0.4), (0.0, 1.0), (0.0, 0.0)):
        state = new_unet().state_dict()
        for file, strength in zip((first, second), strengths, strict=True):
            tensors = load_file(file)
            for key, up in tensors.items():
                if not key.endswith("lora_up.weight"):
                    continue
                name = key.removesuffix(".lora_up.weight")
                down, alpha = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.alpha"]
                (weight,) = (
                    k
                    for k in state
                    if "lora_unet_" + k[:-7].replace(".", "_") == name and k.endswith(".weight")
                )
                delta = (up.flatten(1) @ down.flatten(1)).reshape(state[weight].shape)
                state[weight] = state[weight] + strength * alpha / len(down) * delta
        merged.load_state_dict(state)
        loras.set_strengths(strengths)
        with torch.no_grad():
            torch.testing.assert_close(
                attached(*inputs()).sample, merged(*inputs()).sample, rtol=1e-4, atol=1e-5
            )


def test_what_is_no_lora_of_this_unet_is_named(tmp_path: Path) -> None:
    save_file({"lora_unet_nowhere.lora_up.weight": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(RequestError, match=r"lora_unet_nowhere\.lora_up\.weight in .*x\.safet"):
        AttachedLoras(new_unet(), [tmp_path / "x.safetensors"])
