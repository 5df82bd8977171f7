"""Real diffusers and transformers classes at small size, as single files, and LoRAs for them."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from merge import to_ldm
from merge.keys import translate, unet_modules
from merge.lora import LoraFile, open_loras
from merge.shapes import unet_shape_of_diffusers

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
    # Like SDXL: three levels, no attention at the top, deeper ones below, two text encoders.
    "sdxl": {
        "block_out_channels": (8, 16, 24),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "use_linear_projection": True,
        "vae": (8, 16),
        "vae_layers": 1,
        "text_2": 24,
    },
    # SDXL's kind in another size: two levels, one layer, attention everywhere, proj_in 1x1.
    "sdxl_odd": {
        "block_out_channels": (16, 8),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "vae": (8, 8),
        "vae_layers": 1,
        "text_2": 32,
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
    text_encoder_2: nn.Module | None
    """SDXL's; None for the others."""


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


def _text(cls: type[CLIPTextModel], tokenizer: CLIPTokenizer, width: int) -> CLIPTextModel:
    return cls(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=24,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _build(name: str, root: Path) -> Tiny:
    shape = dict(SHAPES[name])
    channels, layers, width = shape.pop("vae"), shape.pop("vae_layers"), shape.pop("text_2", 0)
    if width:
        shape["addition_embed_type"] = "text_time"
        shape["addition_time_embed_dim"] = 4
        shape["projection_class_embeddings_input_dim"] = width + 6 * 4
    torch.manual_seed(sum(map(ord, name)))
    unet = UNet2DConditionModel(
        sample_size=8,
        cross_attention_dim=16 + width,
        attention_head_dim=2,
        norm_num_groups=8,
        **shape,
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
    text = _text(CLIPTextModel, tokenizer, 16)
    text_2 = _text(CLIPTextModelWithProjection, tokenizer, width) if width else None
    for module in filter(None, (unet, vae, text, text_2)):
        module.half()
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    if text_2 is None:
        pipeline = StableDiffusionPipeline(
            vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
        )
    else:
        pipeline = StableDiffusionXLPipeline(
            vae, text, text_2, tokenizer, tokenizer, unet, scheduler, add_watermarker=False
        )
    folder, file = root / "pipeline", root / "base.safetensors"
    pipeline.save_pretrained(folder)
    states = [module.state_dict() for module in (unet, vae, text, text_2) if module is not None]
    tensors = to_ldm(*states)
    tensors["v_pred"] = torch.empty(0)
    tensors["ztsnr"] = torch.empty(0)
    tensors["stranger.in_the_file"] = torch.arange(5)
    save_file(tensors, file, {"modelspec.title": "a base", "note": "kept", "format": "pt"})
    return Tiny(folder, file, unet, vae, text, text_2)


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


def sgm_names(base: Tiny) -> dict[str, str]:
    """The UNet's modules in diffusers' names → the names that SDXL's single files have for them."""
    blocks = unet_modules(unet_shape_of_diffusers(base.unet.state_dict()))
    found = {}
    for key in base.unet.state_dict():
        module = key.rpartition(".")[0]
        found[module] = translate(f"{module}.weight", blocks).removesuffix(".weight")
    return found


def kohya(
    base: Tiny,
    rank: int = 3,
    alpha: float | None = 2.0,
    seed: int = 0,
    text: bool = True,
    every: int = 1,
    convs: bool = True,
    names: Callable[[str], str] = lambda module: module,
) -> dict[str, Tensor]:
    """A LoRA over all layers that kohya adapts (every n-th of them), the convs if asked for.

    names: what the file calls a module of the UNet, such as `sgm_names(base).get`.
    """
    generator = torch.Generator().manual_seed(seed)
    skipped = ("conv_in", "conv_out", "time_embedding", "add_embedding")
    kinds = nn.Linear | nn.Conv2d if convs else nn.Linear
    layers = [
        ("lora_unet_" + names(name).replace(".", "_"), module)
        for name, module in base.unet.named_modules()
        if isinstance(module, kinds) and not name.startswith(skipped)
    ]
    if text:
        first = "lora_te" if base.text_encoder_2 is None else "lora_te1"
        for prefix, encoder in ((first, base.text_encoder), ("lora_te2", base.text_encoder_2)):
            layers += [
                (f"{prefix}_text_model_{name.removeprefix('text_model.').replace('.', '_')}", layer)
                for name, layer in (encoder.named_modules() if encoder is not None else ())
                if isinstance(layer, nn.Linear) and name != "text_projection"
            ]
    tensors = {}
    for name, module in layers[::every]:
        up, down = factors(module.weight, rank, generator)
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.fixture(scope="session")
def sgm() -> Callable[[Tiny], dict[str, str]]:
    """`sgm_names`, for `lora(base, names=sgm(base).get)`: as kohya names SDXL's layers."""
    return sgm_names


@pytest.fixture
def lora(tmp_path: Path) -> Callable[..., Path]:
    """Writes a LoRA for a pipeline and returns its path: lora(base, rank=3, alpha=2.0, seed=0)."""

    def write(base: Tiny, name: str = "lora", **settings: object) -> Path:
        path = tmp_path / f"{name}.safetensors"
        save_file(kohya(base, **settings), path)
        return path

    return write


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., AbstractContextManager[LoraFile]]:
    """opened(tensors, metadata=None): an adapter file of them, open."""

    @contextmanager
    def run(
        tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
    ) -> Iterator[LoraFile]:
        path = tmp_path / "adapter.safetensors"
        save_file(tensors, path, metadata)
        with open_loras([path]) as (file,):
            yield file

    return run


@pytest.fixture(scope="session")
def load() -> Callable[..., DiffusionPipeline]:
    """diffusers' own loader: load(base), or load(base, another file of its kind, dtype)."""

    def read(base: Tiny, file: Path | None = None, dtype: torch.dtype = torch.float16) -> Any:
        sdxl = base.text_encoder_2 is not None
        kind = StableDiffusionXLPipeline if sdxl else StableDiffusionPipeline
        return kind.from_single_file(
            file or base.file,
            config=str(base.folder),
            local_files_only=True,
            torch_dtype=dtype,
            **({} if sdxl else {"safety_checker": None}),
        )

    return read


@pytest.fixture(scope="session")
def state() -> Callable[[Any], dict[str, Tensor]]:
    """All weights of a pipeline, or of a Tiny, under COMPONENT.KEY."""

    def collect(pipeline: Any) -> dict[str, Tensor]:
        return {
            f"{part}.{key}": value
            for part in ("unet", "vae", "text_encoder", "text_encoder_2")
            if getattr(pipeline, part, None) is not None
            for key, value in getattr(pipeline, part).state_dict().items()
        }

    return collect
