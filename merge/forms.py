"""What one adapter module adds to one weight, by form: LoRA, LoHa, LoKr, a difference, DoRA.

Pure: tensors in, tensors out. Each form computes blocks of rows of ΔW (out, in·h·w), so that beside
its factors no more than a block is in memory; only DoRA by input channel needs all rows at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from merge.delta import Delta


@dataclass(frozen=True)
class LowRank:
    """LoRA (arXiv:2106.09685): ΔW = scale · up · down.

    up: (out, r). down: (r, in·h·w). scale: alpha / r.
    """

    up: Tensor
    down: Tensor
    scale: float

    @property
    def whole(self) -> bool:
        return False

    def rows(self, weight: Tensor, first: int, strength: float) -> Tensor:
        up = self.up[first : first + weight.shape[0]].to(weight.dtype)
        return (up @ self.down.to(weight.dtype)).mul_(self.scale * strength)


@dataclass(frozen=True)
class Hadamard:
    """LoHa (FedPara, arXiv:2108.06098): ΔW = scale · (left ∘ right), elementwise."""

    left: LowRank
    right: LowRank
    scale: float

    @property
    def whole(self) -> bool:
        return False

    def rows(self, weight: Tensor, first: int, strength: float) -> Tensor:
        left = self.left.rows(weight, first, 1.0)
        return left.mul_(self.right.rows(weight, first, 1.0)).mul_(self.scale * strength)


@dataclass(frozen=True)
class Kronecker:
    """LoKr (LyCORIS, arXiv:2309.14859): ΔW = scale · left ⊗ right.

    left: (l, m). right: (k, n·h·w) of a layer with out = l·k and in = m·n: flattened kernels stay
    in place, for the right factor's columns are the product's innermost.
    """

    left: Tensor
    right: Tensor
    scale: float

    @property
    def whole(self) -> bool:
        return False

    def rows(self, weight: Tensor, first: int, strength: float) -> Tensor:
        height = self.right.shape[0]
        numbers = torch.arange(first, first + weight.shape[0])
        left = self.left[numbers // height].to(weight.dtype) * (self.scale * strength)
        right = self.right[numbers % height].to(weight.dtype)
        return (left[:, :, None] * right[:, None, :]).reshape(weight.shape)


@dataclass(frozen=True)
class Difference:
    """A difference stored whole: ΔW = scale · values, (out, in·h·w), or (n, 1) of a bias."""

    values: Tensor
    scale: float

    @property
    def whole(self) -> bool:
        return False

    def rows(self, weight: Tensor, first: int, strength: float) -> Tensor:
        values = self.values[first : first + weight.shape[0]].to(weight.dtype)
        return values * (self.scale * strength)


@dataclass(frozen=True)
class Decomposed:
    """DoRA (arXiv:2402.09353) over another form: W' = m · V / ‖V‖ with V = W + Δ; ΔW = W' - W.

    magnitude: m, one for each output (the norm is taken over a row of V), or, `by_input`, one for
    each input channel (the norm is taken over all outputs and the kernel). A norm of 0 gives 0.
    epsilon: added to the norm, as LyCORIS trains; PEFT adds none.

    Strength is linear, W + strength · (W' - W), and W is the sum so far: a DoRA after another LoRA
    decomposes what that one made.
    """

    inner: Delta
    magnitude: Tensor
    by_input: bool
    epsilon: float

    @property
    def whole(self) -> bool:
        return self.by_input or self.inner.whole

    def rows(self, weight: Tensor, first: int, strength: float) -> Tensor:
        moved = self.inner.rows(weight, first, 1.0).add_(weight)
        magnitude = self.magnitude.to(weight.dtype)
        if self.by_input:
            shaped = moved.view(weight.shape[0], len(magnitude), -1)
            norm = torch.linalg.vector_norm(shaped, dim=(0, 2), keepdim=True)
            magnitude = magnitude[None, :, None]
        else:
            shaped = moved
            norm = torch.linalg.vector_norm(shaped, dim=1, keepdim=True)
            magnitude = magnitude[first : first + weight.shape[0], None]
        norm += self.epsilon
        shaped *= torch.where(norm > 0, magnitude / norm, 0.0)
        return moved.sub_(weight).mul_(strength)


def tucker(core: Tensor, down: Tensor) -> Tensor:
    """Σ_b core[a, b] · down[b]: core (a, b, h, w) and down (b, in) → (a, in·h·w)."""
    joined = torch.einsum("abhw,bi->aihw", core, down)
    return joined.reshape(core.shape[0], -1)
