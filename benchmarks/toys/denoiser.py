"""A denoiser of 191,332 weights and its loss: epsilon, on Stable Diffusion's noise schedule."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.toys.pictures import PIXELS
from benchmarks.toys.stack import Factors, Weights, adam

WIDTH, TIME, BATCH, TIMESTEPS = 256, 32, 64, 1000
SHAPES = ((WIDTH, PIXELS + TIME), (WIDTH, WIDTH), (WIDTH, WIDTH), (PIXELS, WIDTH))

_BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
SIGNAL = torch.cumprod(1 - _BETAS, 0).float()
"""(1000,): the share of the picture's variance that is left at each timestep."""


@dataclass(frozen=True)
class Samples:
    """Noisy pictures of S replicas (or of one that all share: S = 1), ready for the network."""

    inputs: Tensor
    """(S, B, 132): the noisy picture, and the timestep's waves."""
    noise: Tensor
    """(S, B, 100)"""

    def of(self, replica: int) -> "Samples":
        """One replica's."""
        return Samples(self.inputs[replica : replica + 1], self.noise[replica : replica + 1])


def samples(pictures: Tensor, timesteps: Tensor, noise: Tensor) -> Samples:
    """pictures, noise: (S, B, 100); timesteps: (S, B) int64."""
    left = SIGNAL[timesteps].unsqueeze(-1)
    mixed = left.sqrt() * pictures + (1 - left).sqrt() * noise
    waves = timesteps.unsqueeze(-1) * torch.exp(torch.arange(TIME // 2) * -(6.9 / (TIME // 2)))
    return Samples(torch.cat([mixed, waves.sin(), waves.cos()], -1), noise)


def predicted(
    weights: Weights, biases: Weights, inputs: Tensor, factors: Factors | None = None
) -> Tensor:
    """(S, B, 100). Biases are (1, 1, out), shared: no LoRA touches them.

    Factors are run beside the weights, as a trainer does: their product is never made.
    """
    hidden = inputs
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        result = torch.matmul(hidden, weight.transpose(-1, -2)) + bias
        if factors is not None:
            narrow = torch.matmul(hidden, factors.down[index].transpose(-1, -2))
            result = torch.baddbmm(result, narrow, factors.up[index].transpose(-1, -2))
        hidden = F.silu(result) if index < len(weights) - 1 else result
    return hidden


def losses(
    weights: Weights, biases: Weights, shown: Samples, factors: Factors | None = None
) -> Tensor:
    """(S, B): the mean squared error of each sample."""
    return (predicted(weights, biases, shown.inputs, factors) - shown.noise).square().mean(-1)


def fixed(pictures: Tensor, each: int, seed: int) -> Samples:
    """(1, N x each, …): every picture at `each` stratified timesteps with noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    shown = pictures.repeat_interleave(each, 0)
    shift = torch.rand(len(shown), generator=generator)
    part = torch.arange(each).repeat(len(pictures))
    timesteps = _stratified(part, shift, each)
    noise = torch.randn(shown.shape, generator=generator)
    return samples(shown[None], timesteps[None], noise[None])


def _stratified(part: Tensor, shift: Tensor, count: int) -> Tensor:
    """Position `part` of `count`, moved by `shift` in [0, 1), as a timestep."""
    # In float32 the last part and a shift next to 1 add up to the count itself.
    return ((part + shift) * (TIMESTEPS / count)).long().clamp(max=TIMESTEPS - 1)


class Feed:
    """The batches that a training sees: replicas of one seed see the same ones."""

    def __init__(self, pictures: Tensor, seeds: list[int]) -> None:
        """pictures: (P, N, 100), P = 1 or one set for each distinct seed, in order of `seeds`."""
        self._pictures, self._distinct = pictures, sorted(set(seeds))
        self._which = torch.tensor([self._distinct.index(seed) for seed in seeds])
        self._generators = [torch.Generator().manual_seed(7 + seed) for seed in self._distinct]

    def next(self) -> Samples:
        """One batch of 64 for every replica, timesteps stratified over the batch."""
        shown, timesteps, noises = [], [], []
        for index, generator in enumerate(self._generators):
            pool = self._pictures[index % len(self._pictures)]
            shown.append(pool[torch.randint(len(pool), (BATCH,), generator=generator)])
            shift = torch.rand(1, generator=generator)
            timesteps.append(_stratified(torch.arange(BATCH), shift, BATCH))
            noises.append(torch.randn(BATCH, PIXELS, generator=generator))
        made = samples(torch.stack(shown), torch.stack(timesteps), torch.stack(noises))
        return Samples(made.inputs[self._which], made.noise[self._which])


def pretrained(pictures: Tensor, steps: int, seed: int) -> tuple[Weights, Weights]:
    """Weights (1, out, in) and biases (1, 1, out) after full training on `pictures` (N, 100)."""
    generator = torch.Generator().manual_seed(seed)
    weights = [
        (torch.rand(1, out, inner, generator=generator) * 2 - 1) * (1.5 / inner) ** 0.5
        for out, inner in SHAPES
    ]
    biases = [torch.zeros(1, 1, out) for out, _ in SHAPES]
    feed = Feed(pictures[None], [seed])

    def loss(step: int) -> Tensor:
        return losses(weights, biases, feed.next()).mean(-1)

    adam([*weights, *biases], loss, steps, torch.tensor([3e-3]))
    return weights, biases
