"""Counted randomness: every draw is a function of what it is for, never of what was drawn before.

Noise, timesteps, dropout and order come from (seed, round, epoch, image, step), so a run that was
killed and resumed makes the same bytes as one that was not.
"""

import torch
from blake3 import blake3
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from `parts`, by BLAKE3 of their spelling."""
    digest = blake3("\x1f".join(str(part) for part in parts).encode()).digest(8)
    return int.from_bytes(digest, "little") >> 1


def uniform(*parts: int | str) -> float:
    """A number in [0, 1)."""
    return seed_of(*parts) / 2**63


def gaussian(shape: tuple[int, ...], *parts: int | str) -> Tensor:
    """Standard normal noise of `shape`, float32 on the CPU, so that every device sees the same."""
    generator = torch.Generator().manual_seed(seed_of(*parts))
    return torch.randn(shape, generator=generator)
