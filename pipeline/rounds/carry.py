"""What a round carries over to the next: the leading directions of the LoRA as it was merged.

A carried round goes on training them. They are taken out of the base that it trains on, so that
base and adapter together are the function that the round before ended with. Pure: thin factors in,
thin factors out; the product of a layer is never made.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.thin import of_factors


@dataclass(frozen=True)
class Part:
    """One summand of a layer's delta: scale x up x down."""

    up: Tensor
    """(out, r)"""
    down: Tensor
    """(r, in)"""
    scale: float


@dataclass(frozen=True)
class Leading:
    """The best approximation of a sum of parts: up x down, each with the root of the values."""

    up: Tensor
    """(out, k) float32"""
    down: Tensor
    """(k, in) float32"""


def leading(parts: Sequence[Part], count: int) -> Leading:
    """The `count` leading directions of the sum of `parts`, or as many as the layer has.

    QR of the factors and the singular values of a small matrix, in float64 (merge.thin).
    """
    up = torch.cat([part.up.double() * part.scale for part in parts], 1)
    down = torch.cat([part.down.double() for part in parts])
    spectrum = of_factors(up, down, 1.0)
    kept_up, kept_down = spectrum.factors(count)
    return Leading(kept_up.float().contiguous(), kept_down.float().contiguous())
