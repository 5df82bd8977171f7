"""A base's scheduler configuration and facts into schedulers for training and for sampling."""

import inspect
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler

from pipeline.models.inspect import BaseFacts

STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""SD 1.5's noise schedule, for what a configuration leaves out: diffusers' own defaults are those
of pixel models, which clip to [-1, 1], and latents reach further."""


def training_scheduler(configuration: dict[str, Any], facts: BaseFacts) -> DDPMScheduler:
    """The noise that training adds, and its target (epsilon or v)."""
    return DDPMScheduler(**_settings(DDPMScheduler, configuration, facts))


def sampling_scheduler(configuration: dict[str, Any], facts: BaseFacts) -> DDIMScheduler:
    """Deterministic sampling.

    With zero terminal SNR the steps are spaced from the end ("trailing"): else the last timestep,
    the only one without signal, is never visited (Lin et al. 2023, arXiv 2305.08891, section 3.3).
    """
    settings = _settings(DDIMScheduler, configuration, facts)
    if facts.zero_terminal_snr:
        settings["timestep_spacing"] = "trailing"
    return DDIMScheduler(**settings)


def _settings(kind: type, configuration: dict[str, Any], facts: BaseFacts) -> dict[str, Any]:
    """What of `configuration` this kind of scheduler knows: it may be written for another kind."""
    known = inspect.signature(kind).parameters
    stated = {k: v for k, v in {**STABLE_DIFFUSION, **configuration}.items() if k in known}
    return {
        **stated,
        "prediction_type": facts.prediction_type,
        "rescale_betas_zero_snr": facts.zero_terminal_snr,
    }
