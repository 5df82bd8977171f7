"""A Stable Diffusion of real classes and random weights that loads in milliseconds."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from merge.ldm import to_ldm

WORDS = ["masterpiece", "best", "quality", "red", "green", "blue", "circle", "square", "two"]


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's vocabulary layout: bytes, bytes that end a word, merges, start and end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator([" ".join(WORDS)] * 2, trainer)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens = list(dict.fromkeys([*tokens, *(a + b for a, b in merges)]))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    settings = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def _text(tokenizer: CLIPTokenizer, width: int, **changes: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **changes,
    )


def _scheduler(**changes: Any) -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **changes,
    )


def make_pipeline(
    tokenizer_folder: Path, seed: int = 0, **scheduler: Any
) -> StableDiffusionPipeline:
    """One made of `seed`; `scheduler` are changes to its scheduler's configuration."""
    tokenizer = write_tokenizer(tokenizer_folder)
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = _vae()
    text = CLIPTextModel(_text(tokenizer, 32))
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_scheduler(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_sdxl_pipeline(
    tokenizer_folder: Path, seed: int = 0, **scheduler: Any
) -> StableDiffusionXLPipeline:
    """SDXL's shape: three levels without attention at the top, two encoders, added conditions.

    As in SDXL, the second tokenizer pads with "!" and the first with its end.
    """
    first = write_tokenizer(tokenizer_folder / "first")
    second = write_tokenizer(tokenizer_folder / "second")
    second.pad_token = "!"
    torch.manual_seed(seed)
    vae = _vae()
    text = CLIPTextModel(_text(first, 16, hidden_act="quick_gelu"))
    text_2 = CLIPTextModelWithProjection(_text(second, 24, projection_dim=20, hidden_act="gelu"))
    times = 6 * 8
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        cross_attention_dim=16 + 24,
        attention_head_dim=4,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=times + 20,
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text,
        text_encoder_2=text_2,
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=_scheduler(**scheduler),
        add_watermarker=False,
    )


def single_file_tensors(
    pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline,
) -> dict[str, torch.Tensor]:
    """Its weights under the names that a single file gives them."""
    text = {
        f"text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in pipeline.text_encoder.state_dict().items()
    }
    two = pipeline.text_encoder_2.state_dict() if hasattr(pipeline, "text_encoder_2") else None
    return to_ldm(pipeline.unet.state_dict(), pipeline.vae.state_dict(), text, text_2=two)


def write_single_file(
    path: Path,
    tensors: dict[str, torch.Tensor],
    markers: tuple[str, ...] = (),
    metadata: dict[str, str] | None = None,
) -> Path:
    """Saves `tensors` with zero-element markers of these names."""
    extra = {name: torch.empty(0) for name in markers}
    save_file({**tensors, **extra}, path, metadata=metadata)
    return path
