"""Prompts into pictures through diffusers' pipelines, from the same noise for any checkpoint.

SD 1.5 and SDXL alike; an SDXL is told that its picture is whole and of the size that is asked for.
The only file of this room that imports torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.errors import UrushiError
from pipeline.models.fitting import quiet
from pipeline.models.load import load_pipeline, text_of
from pipeline.models.pictures import decoded, initial_noise, rescale_of, to_image
from pipeline.models.text import TextStack
from pipeline.progress import Bar, Progress
from pipeline.recipe.base import Base
from pipeline.recipe.preview import Preview
from pipeline.recipe.shots import shots
from pipeline.size import Size

ON_GPU, ON_CPU = ("cuda", torch.float16), ("cpu", torch.float32)
"""Half precision halves what an SDXL takes of a GPU: 7 GB, not 14; a CPU would only emulate it."""
BATCH = 8
"""Pictures drawn together at most."""
BATCH_PIXELS = BATCH * 512 * 512
"""And at most so many pixels, which keeps an SD 1.5 on a CPU within a few GB."""


def batches(count: int, size: Size, limit: int = BATCH) -> list[range]:
    """Picture numbers 0..count-1 in runs of at most `limit` pictures and BATCH_PIXELS pixels."""
    step = max(1, min(limit, BATCH_PIXELS // size.area))
    return [range(first, min(first + step, count)) for first in range(0, count, step)]


def draw(
    base: Base,
    checkpoint: Path | None,
    preview: Preview,
    size: Size,
    progress: Progress,
    *,
    what: str,
) -> list[Image.Image]:
    """One RGB picture of `size` pixels per shot, in order.

    Raises:
        RequestError: the base or the checkpoint cannot be loaded.
        UrushiError: the device has no memory for even one picture.
    """
    if not preview.prompts:
        return []
    pipe = placed(
        load_pipeline(base, checkpoint), *(ON_GPU if torch.cuda.is_available() else ON_CPU)
    )
    limit = BATCH
    while True:
        try:
            pictures = _draw_all(pipe, text_of(pipe, base), preview, size, limit, progress, what)
            break
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            if limit == 1:
                raise UrushiError(
                    f"The GPU has no memory for one picture of {size}. "
                    "Set a smaller width and height in [preview], or close what else uses the GPU."
                ) from None
            limit //= 2
    broken = sum(not np.isfinite(picture).all() for picture in pictures)
    if broken:
        progress.say(
            f"{what}: {broken} of {len(pictures)} pictures have values that are not numbers and "
            "come out black. These weights are broken; a lower learning rate helps most often."
        )
    return [to_image(picture) for picture in pictures]


def placed(pipe: Any, device: str, dtype: torch.dtype) -> Any:
    """`pipe` on a device, its UNet and encoders in `dtype`, ready to draw.

    The VAE stays in float32: it is small, and SDXL's leaves the range of float16.
    """
    pipe.to(device)
    with quiet():
        for part in (pipe.unet, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
            if part is not None:
                part.to(dtype)
    pipe.set_progress_bar_config(disable=True)
    # Decoding holds full-size activations, so it goes picture by picture, whatever the batch.
    pipe.vae.enable_slicing()
    return pipe


def _draw_all(
    pipe: Any,
    text: TextStack,
    preview: Preview,
    size: Size,
    limit: int,
    progress: Progress,
    what: str,
) -> list[np.ndarray[Any, Any]]:
    """Pictures as (H, W, 3) float32 in 0..1."""
    factor = int(pipe.vae_scale_factor)
    latent = Size(size.width // factor, size.height // factor)
    channels = int(pipe.unet.config.in_channels)
    wanted = shots(preview)
    runs = batches(len(wanted), size, limit)
    pictures: list[np.ndarray[Any, Any]] = []
    with progress.bar(what, preview.steps * len(runs), "step") as bar:
        for run in runs:
            noise = torch.cat([initial_noise(wanted[i].seed, channels, latent) for i in run])
            result = pipe(
                **_told(text, [wanted[i].prompt for i in run], preview.negative, pipe.unet.dtype),
                width=size.width,
                height=size.height,
                num_inference_steps=preview.steps,
                guidance_scale=preview.guidance,
                guidance_rescale=rescale_of(pipe.scheduler),
                latents=noise.to(pipe.unet.dtype),
                output_type="latent",
                callback_on_step_end=_ticking(bar),
            )
            pictures.extend(decoded(pipe.vae, result.images))
    return pictures


def _told(
    text: TextStack, prompts: Sequence[str], negative: str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Prompts as captions are read in training: diffusers' pipelines cut them after 75 tokens, and
    of [base].clip_skip they know nothing."""
    wanted, unwanted = text.encode(prompts), text.encode([negative] * len(prompts))
    told = {"prompt_embeds": wanted.hidden, "negative_prompt_embeds": unwanted.hidden}
    if wanted.pooled is not None and unwanted.pooled is not None:
        told["pooled_prompt_embeds"] = wanted.pooled
        told["negative_pooled_prompt_embeds"] = unwanted.pooled
    return {name: states.to(dtype) for name, states in told.items()}


def _ticking(bar: Bar) -> Any:
    def tick(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        bar.advance()
        return tensors

    return tick
