"""The denoising objective: what the network should say, and how far off it is.

Epsilon: Ho et al. 2020, arXiv 2006.11239, eq. 14. v = alpha x noise - sigma x latent: Salimans and
Ho 2022, arXiv 2202.00512, appendix D. Forward process and signal rates are diffusers'.
"""

import torch
from diffusers import DDPMScheduler
from torch import Tensor


def target(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network should predict, (B, C, H, W), for latents and noise of that shape.

    Args:
        timesteps: (B,) int64, 0 to 999.
    """
    if scheduler.config.prediction_type == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(latents, noise, timesteps)
        return velocity
    return noise


def sample_losses(prediction: Tensor, wanted: Tensor, masks: Tensor | None = None) -> Tensor:
    """(B,): the mean squared error of each sample, in float32 whatever the network ran in.

    Args:
        masks: as `sample_means` takes them.
    """
    return sample_means((prediction.float() - wanted.float()).pow(2), masks)


def sample_means(errors: Tensor, masks: Tensor | None = None) -> Tensor:
    """(B,): the mean of each sample's errors, (B, C, H, W) float32, weighed by `masks`.

    The sum is divided by all pixels, not by the masks' own: a picture of which a tenth is kept
    counts a tenth, and no pixel of it more than one of a whole picture. So does kohya's
    `library/custom_train_functions.py`, `apply_masked_loss`.

    Args:
        masks: (B, 1, H, W) float32, 0 to 1; None: ones.
    """
    weighed = errors if masks is None else errors * masks
    return weighed.mean(dim=tuple(range(1, weighed.dim())))


def stratified_timesteps(positions: Tensor, count: int, shift: float, total: int) -> Tensor:
    """(N,) int64: the `positions`-th of `count` equal parts of [0, total), all shifted alike.

    One uniform draw places a whole batch: every batch covers all noise levels, which lowers the
    variance of its gradient without bias (each position by itself is uniform in its part).
    """
    return ((positions.double() + shift) * (total / count)).long().clamp(0, total - 1)


def noisy(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """(B, C, H, W): the latents at their timesteps' noise levels."""
    mixed: Tensor = scheduler.add_noise(latents, noise, timesteps)
    return mixed


def posterior_sample(mean: Tensor, logvar: Tensor, noise: Tensor, scaling: float) -> Tensor:
    """A draw from the VAE's posterior, scaled as the UNet expects. All (C, H, W)."""
    return (mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * noise) * scaling
