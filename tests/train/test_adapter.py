"""The adapter on a real UNet: what it covers, that it starts as nothing, that its file is it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from pipeline.errors import RequestError
from pipeline.recipe.lora import Lora
from pipeline.train.adapter import attach, factors, save_lora, set_strength, trainable
from pipeline.train.conditioning import Conditioning
from pipeline.train.denoiser import Denoiser
from pipeline.train.naming import blocks_of
from pipeline.train.targets import targets


def new_network() -> Denoiser:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    return Denoiser(unet).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.tensor([10, 700]),
        Conditioning(torch.randn(2, 77, 24, generator=generator), None),
    )


def trained(network: Denoiser) -> None:
    """Stands for training: random values in every factor."""
    generator = torch.Generator().manual_seed(2)
    for parameter in trainable(network):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05


def test_linear_only_covers_attention_and_conv_adds_the_resnets() -> None:
    network = new_network()
    linear = {t.name for t in targets(network, Lora(rank=4))}
    both = {t.name: t for t in targets(network, Lora(rank=4, alpha=2, conv_rank=8))}
    assert linear < set(both)
    assert all(".attentions." in name for name in linear)
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k" in linear
    assert not any(
        name.startswith(("unet.conv_in", "unet.conv_out", "unet.time_embedding")) for name in both
    )
    convolution = both["unet.down_blocks.0.resnets.0.conv1"]
    assert (convolution.rank, convolution.alpha) == (8, 4.0)
    projection = both["unet.mid_block.resnets.0.time_emb_proj"]
    assert (projection.rank, projection.alpha) == (4, 2.0)


def test_a_rank_above_the_layer_is_refused_by_name() -> None:
    network = new_network()
    with pytest.raises(
        RequestError,
        match=r"rank 64 in unet.down_blocks.0.attentions.0.proj_in, "
        r"whose size allows 16.*Lower \[lora\].rank, or give the block IN01 16",
    ):
        targets(network, Lora(rank=64))
    with pytest.raises(RequestError, match=r"Lower \[lora\].conv_rank.*\[lora\].block_conv_ranks"):
        targets(network, Lora(rank=4, conv_rank=64))
    # The UNet is wider inside.
    assert targets(network, Lora(rank=16, block_ranks="M00 = 24"))


def by_block(lora: Lora) -> dict[str, set[tuple[int, float, float]]]:
    """Block → (rank, scale, rate) of its layers; the UNet counts IN01, IN03, M00, OUT00 to 03."""
    network = new_network()
    covered = targets(network, lora)
    blocks = blocks_of(network, (target.name for target in covered))
    found: dict[str, set[tuple[int, float, float]]] = {}
    for t in covered:
        found.setdefault(blocks[t.name], set()).add((t.rank, t.alpha / t.rank, t.rate))
    return found


def test_blocks_have_rates_and_ranks_of_their_own() -> None:
    lora = Lora(rank=8, alpha=4, blocks="IN01, OUT00-02 = 0.5", block_ranks="OUT02 = 2")
    assert by_block(lora) == {"IN01": {(8, 0.5, 1.0)}, "OUT02": {(2, 2.0, 0.5)}}
    assert by_block(Lora(rank=8, blocks="M00 = 0, rest = 1")).keys() == {"IN01", "OUT02", "OUT03"}
    wide = Lora(rank=4, alpha=4, conv_rank=2, conv_alpha=1, blocks="M00", block_conv_ranks="M00=5")
    assert by_block(wide) == {"M00": {(4, 1.0, 1.0), (5, 0.2, 1.0)}}


def test_blocks_that_the_unet_has_not_are_named() -> None:
    with pytest.raises(RequestError, match=r"\[lora\].blocks names OUT11, which.*IN00, IN01"):
        targets(new_network(), Lora(rank=4, blocks="OUT11"))
    with pytest.raises(RequestError, match=r"counts the blocks of SDXL.*give 25 numbers"):
        targets(new_network(), Lora(rank=4, blocks=",".join("1" * 19)))


def test_presets() -> None:
    network = new_network()
    full = {t.name for t in targets(network, Lora(rank=4))}
    inside = {t.name for t in targets(network, Lora(rank=4, preset="attn-mlp"))}
    assert {name.rpartition(".")[2] for name in full - inside} == {"proj_in", "proj_out"}
    deep = by_block(Lora(rank=4, preset="character"))
    assert deep.keys() == {"M00", "OUT03"}, "of this UNet's attention those are MIDD's of SD 1.5"
    everywhere = by_block(Lora(rank=4, preset="character", blocks="ALL"))
    assert everywhere.keys() == {"IN01", "M00", "OUT02", "OUT03"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"blocks": "IN04-OUT07"}, "blocks 'IN04-OUT07' is not a range of blocks"),
        ({"blocks": "BASE, IN01"}, "blocks names BASE: text encoders are no blocks"),
        ({"blocks": "IN01 = -1"}, "blocks has a number below 0"),
        ({"blocks": "1,0,1"}, "has 3 numbers; block weights are lists of 25, 19"),
        ({"block_ranks": "IN01 = 0"}, "block_ranks has 0: ranks are whole numbers, 1 to 1024"),
        ({"block_ranks": "IN01 = 2.5"}, "block_ranks has 2.5: ranks are whole numbers"),
        ({"block_ranks": "IN01, M00 = 2"}, "block_ranks .*is not NAME=NUMBER"),
        ({"rank": 4, "rslora": True}, "has rslora without an alpha"),
        ({"block_conv_ranks": "IN01 = 2"}, "has block_conv_ranks without a conv_rank"),
        ({"conv_rank": 2, "preset": "attn-mlp"}, "covers no convolutions: take conv_rank out"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_recipe(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Lora.model_validate(keys)


def test_a_fresh_adapter_changes_nothing_and_is_the_seeds_own() -> None:
    plain, adapted, again = new_network(), new_network(), new_network()
    attach(adapted, Lora(rank=4, conv_rank=4), seed=5)
    state = torch.random.get_rng_state()
    attach(again, Lora(rank=4, conv_rank=4), seed=5)
    assert torch.random.get_rng_state().equal(state)
    with torch.no_grad():
        assert adapted(*inputs()).equal(plain(*inputs()))
    for a, b in zip(trainable(adapted), trainable(again), strict=True):
        assert a.equal(b) and a.dtype == torch.float32


def test_the_file_is_the_delta_at_every_strength(tmp_path: Path) -> None:
    """The adapter route equals the weight route, with kohya's formula worked here."""
    adapted = new_network()
    attach(adapted, Lora(rank=4, alpha=3, conv_rank=2, conv_alpha=1), seed=5)
    trained(adapted)
    save_lora(factors(adapted), tmp_path / "lora.safetensors", {"ss_network_dim": "4"})
    tensors = load_file(tmp_path / "lora.safetensors")
    for strength in (0.0, 0.4, 1.0):
        merged = new_network()
        for name, module in merged.unet.named_modules():
            key = "lora_unet_" + name.replace(".", "_")
            if f"{key}.alpha" not in tensors:
                continue
            assert isinstance(module, nn.Linear | nn.Conv2d)
            up, down = tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"]
            scale = strength * float(tensors[f"{key}.alpha"]) / down.shape[0]
            delta = up.flatten(1) @ down.flatten(1)
            module.weight.data += scale * delta.reshape(module.weight.shape)
        set_strength(adapted, strength)
        with torch.no_grad():
            torch.testing.assert_close(adapted(*inputs()), merged(*inputs()), atol=2e-5, rtol=1e-4)


def test_the_same_adapter_is_the_same_file_in_every_process(tmp_path: Path) -> None:
    """The format's own writer puts metadata in another order in each process."""
    script = (
        "import sys, torch; from pathlib import Path; from safetensors.torch import save;"
        "from pipeline.artefacts.tensors import ordered;"
        "m = {f'key {i}': str(i) for i in range(20)};"
        "Path(sys.argv[1]).write_bytes(ordered(save({'a': torch.arange(5.0)}, metadata=m)))"
    )
    files = [tmp_path / f"{n}.safetensors" for n in range(3)]
    for file in files:
        subprocess.run([sys.executable, "-c", script, str(file)], check=True)
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(files[0], framework="pt") as opened:
        assert opened.metadata()["key 7"] == "7"
        assert opened.get_tensor("a").tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
