"""LoRAs beside the weights: what they add, whatever holds the weights."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from pipeline.errors import RequestError
from pipeline.recipe.lora import Lora
from pipeline.train.adapter import attach, factors, save_lora, set_strength, trainable
from pipeline.train.beside import read_beside, stand_beside
from pipeline.train.conditioning import Conditioning
from pipeline.train.denoiser import Denoiser
from pipeline.train.plan import Earlier


def new_network(width: int = 16) -> Denoiser:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(width, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    return Denoiser(unet).eval()


@torch.no_grad()
def said(network: Denoiser) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    hidden = torch.randn(2, 77, 24, generator=generator)
    answer: torch.Tensor = network(noisy, torch.tensor([10, 700]), Conditioning(hidden, None))
    return answer


def lora_file(path: Path, lora: Lora, seed: int) -> torch.Tensor:
    """Writes a LoRA of random factors; what the network says with it."""
    network = new_network()
    attach(network, lora, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable(network):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    save_lora(factors(network), path, {})
    return said(network)


def test_a_file_beside_is_the_adapter_that_wrote_it(tmp_path: Path) -> None:
    wanted = lora_file(tmp_path / "a.safetensors", Lora(rank=4, alpha=3, conv_rank=2), 1)
    network = new_network()
    stand_beside(network, [read_beside(Earlier("first", tmp_path / "a.safetensors", 1.0))])
    torch.testing.assert_close(said(network), wanted)
    assert not trainable(network)


def test_several_of_different_layers_add_up_and_can_be_taken_back(tmp_path: Path) -> None:
    lora_file(tmp_path / "a.safetensors", Lora(rank=4, conv_rank=2), 1)
    lora_file(tmp_path / "b.safetensors", Lora(rank=3), 2)
    plain = said(new_network())
    one, both = new_network(), new_network()
    first = read_beside(Earlier("a", tmp_path / "a.safetensors", 0.7))
    stand_beside(one, [first])
    stand_beside(both, [first, read_beside(Earlier("b", tmp_path / "b.safetensors", 0.4))])
    assert not torch.allclose(said(both), said(one), atol=1e-3)
    set_strength(both, 0.0, "b")
    torch.testing.assert_close(said(both), said(one), atol=1e-5, rtol=1e-5)
    stand_beside(one, [read_beside(Earlier("back", tmp_path / "a.safetensors", -0.7))])
    torch.testing.assert_close(said(one), plain, atol=1e-5, rtol=1e-5)


def test_a_round_trains_on_top_of_what_stands_beside(tmp_path: Path) -> None:
    wanted = lora_file(tmp_path / "a.safetensors", Lora(rank=4), 1)
    network = new_network()
    stand_beside(network, [read_beside(Earlier("a", tmp_path / "a.safetensors", 1.0))])
    covered = attach(network, Lora(rank=2, conv_rank=2), seed=3)
    torch.testing.assert_close(said(network), wanted)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(covered) and all(".round." in name for name in trained)


def test_a_lora_of_another_base_is_refused(tmp_path: Path) -> None:
    lora_file(tmp_path / "a.safetensors", Lora(rank=4), 1)
    with pytest.raises(RequestError, match="trained on another base"):
        stand_beside(new_network(24), [read_beside(Earlier("a", tmp_path / "a.safetensors", 1.0))])


def test_several_at_their_strengths_are_the_sum_of_their_deltas(tmp_path: Path) -> None:
    """Of other ranks, alphas and layers: one covers convolutions, the other does not."""
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    lora_file(first, Lora(rank=4, alpha=2, conv_rank=3), 1)
    lora_file(second, Lora(rank=2), 2)
    merged, attached = new_network(), new_network()
    files = {"first": first, "second": second}
    stand_beside(attached, [read_beside(Earlier(n, f, 1.0)) for n, f in files.items()])
    for strengths in ((0.7, -0.4), (0.0, 1.0), (0.0, 0.0)):
        state = new_network().unet.state_dict()
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
        merged.unet.load_state_dict(state)
        for name, strength in zip(files, strengths, strict=True):
            set_strength(attached, strength, name)
        torch.testing.assert_close(said(attached), said(merged), rtol=1e-4, atol=1e-5)


def test_what_is_no_lora_of_two_factors_is_named(tmp_path: Path) -> None:
    save_file({"lora_unet_nowhere.hada_w1_a": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(RequestError, match=r"lora_unet_nowhere\.hada_w1_a in .*x\.safet"):
        read_beside(Earlier("x", tmp_path / "x.safetensors", 1.0))
    save_file({"lora_unet_nowhere.lora_up.weight": torch.ones(1, 1)}, tmp_path / "x.safetensors")
    with pytest.raises(RequestError, match="only one factor for lora_unet_nowhere"):
        read_beside(Earlier("x", tmp_path / "x.safetensors", 1.0))
