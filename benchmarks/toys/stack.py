"""Many small networks trained at once: replicas stacked along a first dimension, each its own rate.

Seeds and learning rates of one policy differ in nothing that a batched product minds, so a step of
fifteen runs costs little more than a step of one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.recipe.train import Train
from pipeline.train.schedule import factor, warmup_steps

Weights = list[Tensor]
"""Per layer (S, out, in): S replicas."""
Loss = Callable[[Weights, int], Tensor]
"""Effective weights and the step into (S,) losses."""

BETAS, EPSILON = (0.9, 0.99), 1e-8
FALLING = Train()
"""The program's own law: a warm-up and a cosine to a tenth."""


@dataclass
class Factors:
    """One LoRA of every replica, per layer: up (S, out, r), down (S, r, in); alpha = r."""

    up: list[Tensor]
    down: list[Tensor]

    def deltas(self) -> Weights:
        """up x down, per layer (S, out, in)."""
        return [up @ down for up, down in zip(self.up, self.down, strict=True)]

    def tensors(self) -> list[Tensor]:
        """All of them, ups first."""
        return [*self.up, *self.down]

    def copy(self) -> "Factors":
        """The same numbers in storage of their own."""
        return Factors(
            [t.detach().clone() for t in self.up], [t.detach().clone() for t in self.down]
        )


def fresh(weights: Weights, rank: int, seeds: Sequence[int]) -> Factors:
    """down by Kaiming (uniform, a = sqrt 5) from each replica's seed, up zero, as peft starts."""
    ups, downs = [], []
    for layer, weight in enumerate(weights):
        _, out, inner = weight.shape
        fits = min(rank, out, inner)
        drawn = [
            torch.rand(fits, inner, generator=torch.Generator().manual_seed(seed * 1009 + layer))
            for seed in seeds
        ]
        downs.append((torch.stack(drawn) * 2 - 1) / inner**0.5)
        ups.append(torch.zeros(len(seeds), out, fits))
    return Factors(ups, downs)


def added(weights: Weights, deltas: Weights, strengths: Tensor | float = 1.0) -> Weights:
    """weights + strength x deltas; strengths are one number or (S,)."""
    scale = strengths.view(-1, 1, 1) if isinstance(strengths, Tensor) else strengths
    return [weight + scale * delta for weight, delta in zip(weights, deltas, strict=True)]


def adam(
    parameters: list[Tensor],
    loss: Callable[[int], Tensor],
    steps: int,
    rates: Tensor,
    *,
    after: Callable[[int], None] = lambda step: None,
    law: Train = FALLING,
) -> None:
    """Trains `parameters` (S, …) in place by Adam, every replica at its own peak of `rates` (S,).

    Each replica sees only its own gradients: the losses are summed, and Adam works by element.

    Args:
        loss: the step into (S,) losses.
        after: called with the number of steps done.
        law: of its schedule.
    """
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    warmup = warmup_steps(law, steps)
    for step in range(steps):
        for parameter in parameters:
            parameter.requires_grad_(True)
        gradients = torch.autograd.grad(loss(step).sum(), parameters)
        for parameter in parameters:
            parameter.requires_grad_(False)
        torch._foreach_lerp_(first, gradients, 1 - BETAS[0])
        torch._foreach_mul_(second, BETAS[1])
        torch._foreach_addcmul_(second, gradients, gradients, 1 - BETAS[1])
        roots = torch._foreach_sqrt(torch._foreach_div(second, 1 - BETAS[1] ** (step + 1)))
        torch._foreach_add_(roots, EPSILON)
        moves = torch._foreach_div(first, roots)
        rate = rates * (factor(law, step, warmup, steps) / (1 - BETAS[0] ** (step + 1)))
        for parameter, move in zip(parameters, moves, strict=True):
            parameter.sub_(move * rate.view(-1, *[1] * (parameter.dim() - 1)))
        after(step + 1)
