"""A LoRA saved by training means to other programs what it meant here: diffusers, and our merge."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

import merge
from pipeline.recipe.lora import Lora
from pipeline.train.adapter import attach, factors, save_lora, trainable
from pipeline.train.denoiser import Denoiser
from pipeline.train.plan import Start
from pipeline.train.principal import principal
from pipeline.train.start import begin

KINDS = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
FORMS = {
    "linear": Lora(rank=4, alpha=3),
    "conv": Lora(rank=4, alpha=3, conv_rank=2, conv_alpha=1),
    "rslora": Lora(rank=6, alpha=2, rslora=True, conv_rank=2, preset="full"),
    "blocks": Lora(rank=6, alpha=2, conv_rank=2, blocks="IN01-03, M00", block_ranks="M00 = 3"),
    "pissa": Lora(rank=4, alpha=3, conv_rank=2, conv_alpha=1),
}


def tiny() -> Any:
    source = Path(__file__).parent.parent / "models" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny_for_elsewhere", source)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of either family in a folder of its name."""
    root = tmp_path_factory.mktemp("elsewhere")
    make = {"sd15": tiny().make_pipeline, "sdxl": tiny().make_sdxl_pipeline}[request.param]
    make(root / "tokenizers").save_pretrained(root / request.param)
    folder: Path = root / request.param
    return folder


def opened(base: Path, folder: Path | None = None) -> Any:
    pipeline = KINDS[base.name].from_pretrained(folder or base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sampled(pipeline: Any) -> Tensor:
    """(1, 4, 8, 8): latents of a few guided steps, of a fixed noise."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    latents: Tensor = pipeline(
        "red lacquer",
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=noise,
        output_type="latent",
    ).images
    return latents


@pytest.mark.parametrize("form", FORMS)
def test_diffusers_and_our_merge_sample_what_our_model_did(
    base: Path, form: str, tmp_path: Path
) -> None:
    pipeline = opened(base)
    plain = sampled(pipeline)
    network = Denoiser(pipeline.unet)
    covered = attach(network, FORMS[form], seed=5)
    if form == "pissa":
        begin(network, Start("pissa"), {}, principal(network, covered, seed=5))
    generator = torch.Generator().manual_seed(2)
    for parameter in trainable(network):
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
    ours = sampled(pipeline)
    file = tmp_path / "lora.safetensors"
    save_lora(factors(network), file, {"ss_network_module": "networks.lora"})
    theirs = opened(base)
    theirs.load_lora_weights(file)
    torch.testing.assert_close(sampled(theirs), ours, atol=1e-4, rtol=0)
    report = merge.merge(base, [merge.Addend(file, 1.0)], tmp_path / "merged")
    assert len(report.matched) == len(covered)
    torch.testing.assert_close(sampled(opened(base, tmp_path / "merged")), ours, atol=1e-4, rtol=0)
    assert (ours - plain).abs().max() > 1e-2
