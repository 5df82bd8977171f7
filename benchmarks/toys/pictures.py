"""Pictures of 10 x 10 for a network of a hundred thousand weights: two domains that share nothing.

Blobs are what it is taught first; gratings with a rectangle are what it is tuned on. They are rough
on purpose: of waves of 4 pixels and more, 64 pictures are enough to learn from, and rounds that are
always merged do not get worse.
"""

import math

import torch
from torch import Tensor

SIDE = 10
PIXELS = SIDE * SIDE


def blobs(count: int, seed: int) -> Tensor:
    """(count, 100) in about [-1, 1]: one or two soft spots, light or dark, on a plain ground."""
    draw = _Draws(count, seed)
    x, y = _grid()
    picture = draw(-0.5, 0.5).expand(count, PIXELS).clone()
    for spot in range(2):
        cx, cy, radius = draw(1, SIDE - 2), draw(1, SIDE - 2), draw(1.0, 2.5)
        height = draw(0.5, 1.5) * draw.sign()
        if spot:
            height = height * (draw(0, 1) < 0.5)
        picture += height * torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * radius**2))
    return picture.clamp(-1.5, 1.5)


def gratings(count: int, seed: int) -> Tensor:
    """(count, 100): a plane wave of any direction, and a plain rectangle laid over it."""
    draw = _Draws(count, seed)
    x, y = _grid()
    angle, wave, phase = draw(0, math.pi), draw(2.5, 6.0), draw(0, 2 * math.pi)
    across = x * torch.cos(angle) + y * torch.sin(angle)
    picture = draw(0.4, 1.0) * torch.sin(2 * math.pi * across / wave + phase)
    left, top, wide, high = draw(0, 6), draw(0, 6), draw(2, 6), draw(2, 6)
    inside = (x >= left) & (x < left + wide) & (y >= top) & (y < top + high)
    return torch.where(inside, draw(0.5, 1.2) * draw.sign(), picture)


class _Draws:
    def __init__(self, count: int, seed: int) -> None:
        self._count, self._generator = count, torch.Generator().manual_seed(seed)

    def __call__(self, low: float, high: float) -> Tensor:
        drawn = torch.rand(self._count, 1, generator=self._generator)
        return low + (high - low) * drawn

    def sign(self) -> Tensor:
        return (self(0, 1) < 0.5).float() * 2 - 1


def _grid() -> tuple[Tensor, Tensor]:
    line = torch.arange(SIDE).float()
    return line.repeat(SIDE)[None], line.repeat_interleave(SIDE)[None]
