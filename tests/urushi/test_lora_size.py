"""The size that `plan` states is the size that training writes."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from pipeline.models.load import load_text, load_unet
from pipeline.recipe.base import Base
from pipeline.recipe.lora import Lora
from pipeline.train.adapter import attach, factors
from pipeline.train.denoiser import Denoiser, encoder_names
from pipeline.train.plan import Start
from pipeline.train.start import begin
from urushi.lora_size import SAVED, lora_bytes, text_lora_bytes

_source = Path(__file__).parent.parent / "models" / "conftest.py"
_spec = importlib.util.spec_from_file_location("models_for_sizes", _source)
assert _spec and _spec.loader
_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_models)
tiny, tiny_xl = _models.tiny, _models.tiny_xl


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


def test_from_the_weights_own_directions_it_is_twice_as_much(tiny: Any) -> None:
    network, lora = Denoiser(load_unet(tiny.as_folder)), Lora(rank=4, conv_rank=2)
    attach(network, lora, seed=1)
    begin(network, Start("pissa"), {}, {})
    written = sum(4 * t.numel() for t in factors(network).values())
    plain = lora_bytes(tiny.as_folder, lora)
    assert plain is not None and written == pytest.approx(SAVED["pissa"] * plain, rel=0.02)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("learns", [(True, True), (True, False)])
@pytest.mark.parametrize("dora", [False, True])
def test_of_text_encoders_too(
    tiny: Any, tiny_xl: Any, family: str, learns: tuple[bool, bool], dora: bool
) -> None:
    """In transformers' layout and in OpenCLIP's."""
    made = tiny if family == "sd15" else tiny_xl
    lora, text = Lora(rank=4, dora=dora), load_text(made.as_folder)
    shares = {name: 1.0 for name, each in zip(encoder_names(text), learns, strict=False) if each}
    network = Denoiser(load_unet(made.as_folder), text, shares)
    attach(network, lora, seed=1)
    wanted = sum(4 * t.numel() for key, t in factors(network).items() if "lora_te" in key)
    assert wanted
    for base in (made.as_folder, made.as_file):
        assert text_lora_bytes(base, lora, learns) == wanted


def test_without_a_base_it_is_unknown(tmp_path: Path) -> None:
    assert lora_bytes(Base(checkpoint=tmp_path / "none.safetensors"), Lora()) is None
    (tmp_path / "text.safetensors").write_text("no checkpoint")
    assert lora_bytes(Base(checkpoint=tmp_path / "text.safetensors"), Lora()) is None
