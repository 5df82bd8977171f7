"""Real diffusers and transformers classes at small size, as single files, and LoRAs for them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from merge import to_ldm

SHAPES = {
    # Like the shipped tiny base: attention everywhere, one layer a block.
    "tiny": {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "vae": (8, 16, 16),
        "vae_layers": 1,
    },
    # Like SD 1.5: four levels, two layers, no attention at the bottom (upsampler index 1).
    "sd15": {
        "block_out_channels": (8, 16, 16, 24),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "vae": (8, 8, 16, 16),
        "vae_layers": 2,
    },
    # Another mixture, three layers, and proj_in as a linear layer.
    "odd": {
        "block_out_channels": (8, 24, 16),
        "layers_per_block": 3,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "use_linear_projection": True,
        "vae": (8, 16),
        "vae_layers": 3,
    },
}


@dataclass(frozen=True)
class Tiny:
    """A pipeline with random weights: its folder, its single file, and the state dicts in it."""

    folder: Path
    file: Path
    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module


def _tokenizer(folder: Path) -> CLIPTokenizer:
    tokens = [*"abcdefgh", *(f"{c}</w>" for c in "abcdefgh"), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    settings |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    settings |= {"pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


def _build(name: str, root: Path) -> Tiny:
    shape = dict(SHAPES[name])
    channels, layers = shape.pop("vae"), shape.pop("vae_layers")
    torch.manual_seed(sum(map(ord, name)))
    unet = UNet2DConditionModel(
        sample_size=8, cross_attention_dim=16, attention_head_dim=2, norm_num_groups=8, **shape
    )
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        latent_channels=4,
        layers_per_block=layers,
        norm_num_groups=4,
    )
    tokenizer = _tokenizer(root / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            projection_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    for module in (unet, vae, text):
        module.half()
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    pipeline = StableDiffusionPipeline(
        vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    folder, file = root / "pipeline", root / "base.safetensors"
    pipeline.save_pretrained(folder)
    tensors = to_ldm(unet.state_dict(), vae.state_dict(), text.state_dict())
    tensors["v_pred"] = torch.empty(0)
    tensors["ztsnr"] = torch.empty(0)
    tensors["stranger.in_the_file"] = torch.arange(5)
    save_file(tensors, file, {"modelspec.title": "a base", "note": "kept", "format": "pt"})
    return Tiny(folder, file, unet, vae, text)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """Builds a pipeline of one of SHAPES, once."""
    built: dict[str, Tiny] = {}

    def build(name: str) -> Tiny:
        if name not in built:
            torch.set_num_threads(1)
            built[name] = _build(name, tmp_path_factory.mktemp(name))
        return built[name]

    return build


@pytest.fixture
def base(tiny: Callable[[str], Tiny]) -> Tiny:
    return tiny("tiny")


def factors(
    weight: Tensor, rank: int, generator: torch.Generator, size: float = 0.02
) -> tuple[Tensor, Tensor]:
    """Random up and down for a weight, in the forms that kohya writes."""
    out, *inner = weight.shape
    kernel = [1] * (len(inner) - 1)
    down = torch.randn(rank, *inner, generator=generator) * size
    up = torch.randn(out, rank, *kernel, generator=generator)
    return up, down


def kohya(
    base: Tiny,
    rank: int = 3,
    alpha: float | None = 2.0,
    seed: int = 0,
    text: bool = True,
    every: int = 1,
) -> dict[str, Tensor]:
    """A LoRA over all linear and conv layers that kohya adapts (every n-th of them)."""
    generator = torch.Generator().manual_seed(seed)
    skipped = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
    layers = [
        ("lora_unet_" + name.replace(".", "_"), module)
        for name, module in base.unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name not in skipped
    ]
    if text:
        layers += [
            ("lora_te_text_model_" + name.removeprefix("text_model.").replace(".", "_"), module)
            for name, module in base.text_encoder.named_modules()
            if isinstance(module, nn.Linear)
        ]
    tensors = {}
    for name, module in layers[::every]:
        up, down = factors(module.weight, rank, generator)
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.fixture
def lora(tmp_path: Path) -> Callable[..., Path]:
    """Writes a LoRA for a pipeline and returns its path: lora(base, rank=3, alpha=2.0, seed=0)."""

    def write(base: Tiny, name: str = "lora", **settings: object) -> Path:
        path = tmp_path / f"{name}.safetensors"
        save_file(kohya(base, **settings), path)
        return path

    return write
