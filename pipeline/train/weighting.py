"""How a sample's error becomes its training loss: the recipe's distance and its weight.

All by the signal-to-noise ratio SNR = abar / (1 - abar) of the timestep. Of a zero-terminal
schedule's last timestep it is 0: every formula here is finite there.
"""

import math

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from pipeline.recipe.objective import Objective
from pipeline.train.objective import sample_losses, sample_means

LEAST_SNR, MOST_SNR = 1e-3, 1e3
"""Bounds of what debiased estimation divides by: SD's own schedule reaches 0.0047 and 1175."""


def snr(scheduler: DDPMScheduler, timesteps: Tensor) -> Tensor:
    """(B,) float32: signal to noise, as a ratio of variances, at `timesteps` (B,) int64."""
    kept: Tensor = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    return kept / (1 - kept)


def weights(objective: Objective, scheduler: DDPMScheduler, timesteps: Tensor) -> Tensor:
    """(B,) float32: what each sample counts.

    Min-SNR: Hang et al. 2023, arXiv 2303.09556, section 3.4: min(SNR, gamma) / SNR for epsilon,
    min(SNR, gamma) / (SNR + 1) for v. Debiased estimation: Yu et al. 2023, arXiv 2310.08442, eq. 9:
    1 / sqrt(SNR) for epsilon; for v, of which the paper does not speak, 1 / (SNR + 1), as kohya's
    `library/custom_train_functions.py`, `apply_debiased_estimation`.
    """
    ratio = snr(scheduler, timesteps)
    is_v = scheduler.config.prediction_type == "v_prediction"
    if objective.min_snr_gamma is not None:
        if is_v:
            return ratio.clamp(max=objective.min_snr_gamma) / (ratio + 1)
        # min(SNR, gamma) / SNR, written so that it is 1 where SNR is 0.
        return (objective.min_snr_gamma / ratio).clamp(max=1)
    if objective.debiased:
        ratio = ratio.clamp(max=MOST_SNR)
        return 1 / (ratio + 1) if is_v else ratio.clamp(min=LEAST_SNR).rsqrt()
    return torch.ones_like(ratio)


def thresholds(objective: Objective, scheduler: DDPMScheduler, timesteps: Tensor) -> Tensor:
    """(B,) float32: the error from which Huber losses grow slower, at `timesteps`.

    Khrapov et al. 2024, arXiv 2403.16728, section 3: 1 where there is no noise, falling to c;
    exponentially by c ** (t / T), or by (1 - c) / (1 + sigma)^2 + c with sigma = SNR^-1/2.
    """
    c = objective.huber_c
    if objective.huber_schedule == "exponential":
        share = timesteps.float() / int(scheduler.config.num_train_timesteps)
        return torch.exp(math.log(c) * share)
    if objective.huber_schedule == "snr":
        sigma = snr(scheduler, timesteps).rsqrt()
        return (1 - c) / (1 + sigma) ** 2 + c
    return torch.full_like(timesteps, c, dtype=torch.float32)


def training_losses(
    objective: Objective,
    scheduler: DDPMScheduler,
    prediction: Tensor,
    wanted: Tensor,
    timesteps: Tensor,
    masks: Tensor | None = None,
) -> Tensor:
    """(B,) float32: the loss of each sample, for predictions and targets of (B, C, H, W), each
    pixel weighed by `masks`, (B, 1, H, W), as `sample_means` does it.

    Pseudo-Huber 2c (sqrt(d^2 + c^2) - c), which is d^2 for small errors d; smooth-L1 is that over
    c, which is 2|d| for large ones (diffusers' `examples/research_projects/
    scheduled_huber_loss_training`, `conditional_loss`).
    """
    if objective.loss == "l2":
        losses = sample_losses(prediction, wanted, masks)
    else:
        c = thresholds(objective, scheduler, timesteps).view(-1, 1, 1, 1)
        apart = (prediction.float() - wanted.float()).pow(2)
        pseudo = 2 * ((apart + c.pow(2)).sqrt() - c)
        if objective.loss == "huber":
            pseudo = pseudo * c
        losses = sample_means(pseudo, masks)
    return losses * weights(objective, scheduler, timesteps)
