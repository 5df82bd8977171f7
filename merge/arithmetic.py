"""The sum itself, on blocks of rows: float32 (or float64) accumulation, one cast, what it lost.

W = cast(base + Σ_i scale_i · up_i · down_i), the terms in the order given, where scale_i is
strength · alpha / rank. Pure: tensors in, tensors out.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Weights that deltas can be added to, by safetensors' names. 8 bits would hide every delta."""

BLOCK = 1 << 20
"""Elements per block of rows: what bounds memory. Constant: the same files give the same bytes."""


@dataclass(frozen=True)
class Term:
    """One addend's delta for one weight: scale · up (out, r) · down (r, columns)."""

    up: Tensor
    down: Tensor
    scale: float
    last: bool
    """Whether it is the merge's last addend, whose loss in the cast is measured."""


@dataclass
class Sums:
    """Sums of squares over the blocks of one weight, or over all of them."""

    weight: float = 0.0
    delta: float = 0.0
    last: float = 0.0
    lost: float = 0.0
    elements: int = 0

    def add(self, other: "Sums") -> None:
        self.weight += other.weight
        self.delta += other.delta
        self.last += other.last
        self.lost += other.lost
        self.elements += other.elements

    @property
    def relative(self) -> float:
        return math.sqrt(self.delta / self.weight) if self.weight else 0.0

    @property
    def cast_loss(self) -> float:
        """See `LayerReport.cast_loss`."""
        return min(1.0, math.sqrt(self.lost / self.last)) if self.last else 0.0

    def rms(self, squares: float) -> float:
        return math.sqrt(squares / self.elements) if self.elements else 0.0


def tensor_of(content: bytearray, dtype: str) -> Tensor:
    """The elements of a little-endian buffer, flat, sharing its memory."""
    if not content:
        return torch.empty(0, dtype=DTYPES[dtype], device="cpu")
    return torch.frombuffer(content, dtype=DTYPES[dtype])


def bytes_of(tensor: Tensor) -> bytearray:
    """A tensor's elements as safetensors stores them."""
    content = bytearray(tensor.numel() * tensor.element_size())
    if content:
        torch.frombuffer(content, dtype=tensor.dtype).copy_(tensor.reshape(-1))
    return content


def row_blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """[first, end) of consecutive blocks of about BLOCK elements."""
    step = max(1, BLOCK // max(1, columns))
    for first in range(0, rows, step):
        yield first, min(rows, first + step)


def add_terms(
    weight: Tensor, terms: Sequence[Term], first: int, dtype: torch.dtype
) -> tuple[Tensor, Sums]:
    """Rows `first` and on of a weight, as stored (rows, columns), with the terms added and cast."""
    exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
    total = weight.to(exact, copy=True)
    sums = Sums(weight=_squares(total), elements=weight.numel())
    deltas: Tensor | None = None
    before: Tensor | None = None
    latest: Tensor | None = None
    for term in terms:
        rows = term.up[first : first + weight.shape[0]].to(exact)
        delta = (rows @ term.down.to(exact)).mul_(term.scale)
        if term.last:
            before, latest = total.to(dtype, copy=True), delta
        total += delta
        deltas = delta if deltas is None else deltas + delta
    result = total.to(dtype)
    if deltas is not None:
        sums.delta = _squares(deltas)
    if before is not None and latest is not None:
        sums.last = _squares(latest)
        sums.lost = _squares(result.to(exact) - before.to(exact) - latest)
    return result, sums


def _squares(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2


@contextmanager
def exact_products() -> Iterator[None]:
    """No gradients, no autocast, true float32 products, whatever the surrounding program has set.

    `set_float32_matmul_precision("medium")`, common in training, rounds factors to bfloat16 on
    CPUs that multiply those faster: a merge must not depend on it.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
