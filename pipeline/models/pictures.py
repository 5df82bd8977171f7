"""From the noise that a picture starts from to the picture that its latents are."""

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.size import Size

RESCALE = 0.7
"""Without it, guidance overexposes what a model of zero terminal SNR draws (Lin et al. 2023, arXiv
2305.08891, section 3.4, whose factor this is)."""


def initial_noise(seed: int, channels: int, size: Size) -> Tensor:
    """(1, channels, height, width) float32 on the CPU; size of latents.

    A function of the seed alone, so every checkpoint starts a picture from the same noise, on
    every device, however pictures are batched.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(
        (1, channels, size.height, size.width), generator=generator, dtype=torch.float32
    )


def rescale_of(scheduler: Any) -> float:
    """The share of guidance that is scaled back to the spread of the prediction with the prompt."""
    return RESCALE if scheduler.config.get("rescale_betas_zero_snr") else 0.0


@torch.no_grad()
def decoded(vae: AutoencoderKL, latents: Tensor) -> NDArray[np.float32]:
    """(B, 4, h, w) scaled latents to (B, H, W, 3) float32 in 0..1."""
    pixels = vae.decode(latents.float() / vae.config.scaling_factor).sample
    found: NDArray[np.float32]
    found = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return found


def to_image(picture: NDArray[np.float32]) -> Image.Image:
    """(H, W, 3) in 0..1 to 8 bits."""
    finite = np.nan_to_num(picture, nan=0.0, posinf=1.0, neginf=0.0)
    return Image.fromarray((finite.clip(0, 1) * 255).round().astype(np.uint8))
