"""What a sample is noised with: counted draws, shaped as the recipe asks.

Offset: N. Guttenberg, "Diffusion with Offset Noise", Cross Labs 2023. Multi-resolution: J.
Whitaker, "Multi-Resolution Noise for Diffusion Model Training", Weights & Biases 2023, with the
widths of kohya's `library/custom_train_functions.py`, `pyramid_noise_like`. Perturbation of the
input: Ning et al. 2023, arXiv 2301.11706, algorithm 1.
"""

from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.recipe.objective import Objective
from pipeline.train.counted import gaussian, uniform

Key = tuple[int | str, ...]
"""What a draw is for: (seed, round, epoch, image, step)."""


def drawn_noise(objective: Objective, shape: tuple[int, ...], key: Key) -> Tensor:
    """The noise of one sample, (C, H, W) float32: added to its latents, and asked for."""
    noise = gaussian(shape, *key, "noise")
    if objective.noise_offset:
        channels = gaussian((shape[0], 1, 1), *key, "offset")
        noise = noise + objective.noise_offset * channels
    if objective.multires_noise:
        noise = _multires(objective, noise, key)
    return noise


def _multires(objective: Objective, noise: Tensor, key: Key) -> Tensor:
    """Adds coarser layers, until one is a single row or column; of standard deviation 1 again."""
    channels, height, width = noise.shape
    for layer in range(objective.multires_noise):
        shrink = (2 + 2 * uniform(*key, "multires width", layer)) ** layer
        coarse = (max(1, int(height / shrink)), max(1, int(width / shrink)))
        drawn = gaussian((channels, *coarse), *key, "multires", layer)
        wide = interpolate(drawn[None], size=(height, width), mode="bilinear")[0]
        noise = noise + wide * objective.multires_discount**layer
        if 1 in coarse:
            break
    return noise / noise.std()


def shown_noise(objective: Objective, noise: Tensor, key: Key) -> Tensor:
    """What the latents are mixed with, (C, H, W): `noise`, and more where inputs are perturbed."""
    if not objective.input_perturbation:
        return noise
    further = gaussian(tuple(noise.shape), *key, "perturbation")
    return noise + objective.input_perturbation * further
