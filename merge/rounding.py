"""What storing numbers in a dtype rounds away: the noise below which a difference says nothing.

Pure: tensors in, numbers out.
"""

import math

import torch
from torch import Tensor


def is_noise(energy: float, numbers: Tensor, dtype: torch.dtype) -> bool:
    """Whether a difference whose squares sum to `energy` is no more than rounding makes.

    numbers: those that were rounded to `dtype`, as float32.
    """
    most = _margin(numbers.numel())
    # The exact sum costs ten times the bound, and few layers come near it.
    if energy > most * most_rounding(numbers, dtype):
        return False
    return energy <= most * rounding(numbers, dtype)


def rounding(numbers: Tensor, dtype: torch.dtype) -> float:
    """The sum of squared errors to expect from storing such numbers in `dtype`: Σ ulp² / 12."""
    # frexp: |x| = m · 2^e, m in [½, 1), so that the grid's step there is eps · 2^(e - 1).
    exponents = torch.frexp(numbers).exponent
    steps = torch.ldexp(torch.full_like(numbers, torch.finfo(dtype).eps / 2), exponents)
    steps = torch.where(numbers == 0, 0.0, steps).clamp(min=_finest(dtype))
    return float(steps.double().square().sum()) / 12


def most_rounding(numbers: Tensor, dtype: torch.dtype) -> float:
    """A bound above `rounding`, at a tenth of its cost: no step is wider than eps · |x|."""
    norm = float(torch.linalg.vector_norm(numbers, dtype=torch.float64))
    widest = (torch.finfo(dtype).eps * norm) ** 2 + numbers.numel() * _finest(dtype) ** 2
    return widest / 12


def _margin(count: int) -> float:
    """On the squared rounding of `count` numbers: their squared errors scatter by 0.9 of the mean
    (uniform in half a step either way), and none is above three times the mean."""
    return min(3.0, 1.1 + 4.0 / math.sqrt(count))


def _finest(dtype: torch.dtype) -> float:
    """The step of the grid around 0."""
    information = torch.finfo(dtype)
    return information.smallest_normal * information.eps
