"""The objective against the papers' formulas, worked apart from diffusers."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from pipeline.models.inspect import BaseFacts
from pipeline.models.schedule import training_scheduler
from pipeline.train.objective import noisy, sample_losses, stratified_timesteps, target


def scheduler(kind: str) -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=kind,
    )


def test_v_is_alpha_noise_minus_sigma_latent() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    z, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 431, 999])
    alpha = kept[t].sqrt()[:, None, None, None].float()
    sigma = (1 - kept[t]).sqrt()[:, None, None, None].float()
    s = scheduler("v_prediction")
    torch.testing.assert_close(target(s, z, noise, t), alpha * noise - sigma * z, atol=2e-5, rtol=0)
    torch.testing.assert_close(noisy(s, z, noise, t), alpha * z + sigma * noise, atol=2e-5, rtol=0)


def test_without_a_signal_at_the_end_v_is_the_picture_there() -> None:
    """Lin et al. 2023, arXiv 2305.08891, algorithm 1: root abar shifted to end at 0 and scaled to
    begin where it did. There v = 0 x noise - 1 x latent, and what is shown is noise alone."""
    facts = BaseFacts("sdxl", "single-file", "v_prediction", True, 9, 9, Path("xl.safetensors"))
    s = training_scheduler({}, facts)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = torch.cumprod(1 - betas, 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    torch.testing.assert_close(s.alphas_cumprod.double(), root**2, atol=1e-5, rtol=0)
    z, noise, last = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([999])
    torch.testing.assert_close(target(s, z, noise, last), -z, atol=1e-6, rtol=0)
    torch.testing.assert_close(noisy(s, z, noise, last), noise, atol=1e-6, rtol=0)


def test_epsilon_is_the_noise() -> None:
    noise = torch.randn(2, 4, 8, 8)
    wanted = target(scheduler("epsilon"), torch.randn(2, 4, 8, 8), noise, torch.tensor([5, 900]))
    assert wanted.equal(noise)


def test_losses_are_per_sample_and_float32() -> None:
    prediction = torch.zeros(2, 1, 2, 2, dtype=torch.float16)
    wanted = torch.tensor([1.0, 2.0])[:, None, None, None].expand(2, 1, 2, 2)
    losses = sample_losses(prediction, wanted)
    assert losses.dtype == torch.float32
    assert losses.tolist() == [1.0, 4.0]


@pytest.mark.parametrize("shift", [0.0, 0.37, 0.999])
def test_a_batch_has_one_timestep_in_each_part(shift: float) -> None:
    steps = stratified_timesteps(torch.arange(8), 8, shift, 1000)
    assert (steps // 125).tolist() == list(range(8))
    assert int(steps.max()) <= 999
