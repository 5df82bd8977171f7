"""The sum itself, on blocks of rows: float32 (or float64) accumulation, one cast, what it lost.

W = cast(base + Σ_i delta_i), the terms in the order given. Pure: tensors in, tensors out.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.delta import Term
from merge.errors import MergeError
from merge.forms import LowRank

DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Weights that deltas can be added to, by safetensors' names. 8 bits would hide every delta."""

DTYPE_NAMES = {
    "float16": "F16",
    "fp16": "F16",
    "bfloat16": "BF16",
    "bf16": "BF16",
    "float32": "F32",
    "fp32": "F32",
}
"""What a dtype asked for may be called."""

BLOCK = 1 << 18
"""Elements per block of rows: what bounds memory, and stays in a core's cache from the first pass
over it to the last. Constant: the same files give the same bytes."""

FEWEST_ROWS = 96
"""Of a block: fewer make a product of a large rank slow, as it packs the other factor each time."""


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


class Memory:
    """Memory that blocks are read into, summed in and written from: one piece for each use.

    A new block of some megabytes each time costs more in page faults than the sum itself.
    """

    def __init__(self) -> None:
        self._pieces: dict[str, bytearray] = {}

    def take(self, use: str, size: int) -> memoryview:
        """`size` bytes for `use`, holding anything, valid until the next call for that use."""
        piece = self._pieces.get(use)
        if piece is None or len(piece) < size:
            piece = self._pieces[use] = bytearray(size)
        return memoryview(piece)[:size]

    def tensor(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor in memory for `use`, as `take`."""
        view = self.take(use, math.prod(shape) * dtype.itemsize)
        return view_as(view, dtype).view(*shape)


def dtype_named(name: str | None) -> str | None:
    """The safetensors name of a dtype asked for; None stays None. Raises MergeError: unknown."""
    if name is not None and name not in DTYPE_NAMES:
        raise MergeError(f"dtype {name!r} is not one of {', '.join(DTYPE_NAMES)}.")
    return None if name is None else DTYPE_NAMES[name]


def view_as(content: bytearray | memoryview, dtype: torch.dtype) -> Tensor:
    """The elements of a little-endian buffer, flat, sharing its memory."""
    if not content:
        return torch.empty(0, dtype=dtype, device="cpu")
    return torch.frombuffer(content, dtype=dtype)


def tensor_of(content: bytearray | memoryview, dtype: str) -> Tensor:
    """`view_as`, by safetensors' name of the dtype."""
    return view_as(content, DTYPES[dtype])


def bytes_of(tensor: Tensor) -> bytearray:
    """A tensor's elements as safetensors stores them."""
    content = bytearray(tensor.numel() * tensor.element_size())
    if content:
        torch.frombuffer(content, dtype=tensor.dtype).copy_(tensor.reshape(-1))
    return content


def finite(numbers: Tensor) -> bool:
    """Whether there is no NaN and no infinity; both pass through to the extremes."""
    if not numbers.numel():
        return True
    low, high = torch.aminmax(numbers)
    return math.isfinite(float(low)) and math.isfinite(float(high))


def row_blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """[first, end) of consecutive blocks: about BLOCK elements, at least FEWEST_ROWS rows."""
    step = max(BLOCK // max(1, columns), FEWEST_ROWS)
    for first in range(0, rows, step):
        yield first, min(rows, first + step)


def add_terms(
    weight: Tensor,
    terms: Sequence[Term],
    first: int,
    result: Tensor,
    memory: Memory | None = None,
) -> Sums:
    """Casts rows `first` and on of a weight, (rows, columns), with the terms added, into `result`.

    `result` has the weight's shape and the dtype to be written. Of the sums returned `delta` and
    `last` are 0 where all terms are of low rank: `sizes.of_terms` knows them without the product.
    """
    memory = memory or Memory()
    exact = _exact(weight.dtype)
    total = memory.tensor("total", weight.shape, exact).copy_(weight)
    sums = Sums(weight=squares(total), elements=weight.numel())
    start: Tensor | None = None
    before: Tensor | None = None
    if not all(isinstance(term.delta, LowRank) for term in terms):
        start = memory.tensor("start", weight.shape, exact).copy_(total)
    for number, term in enumerate(terms):
        # What is on the output's grid already loses nothing to a cast of its own.
        if term.last and (number > 0 or weight.dtype != result.dtype) and result.dtype != exact:
            room = memory.tensor("before", weight.shape, exact)
            before = torch.sub(result.copy_(total), total, out=room)
        size = _add(total, term, first)
        if term.last:
            sums.last = size
    result.copy_(total)
    if start is not None:
        sums.delta = squares(start.sub_(total))
    if is_compared(terms, weight.dtype, result.dtype):
        error = torch.sub(result, total, out=total)
        sums.lost = squares(error if before is None else error.sub_(before))
    return sums


def is_compared(terms: Sequence[Term], weight: torch.dtype, result: torch.dtype) -> bool:
    """Whether `add_terms` sums what the cast lost: it casts, and the last addend is among them."""
    return bool(terms) and terms[-1].last and result != _exact(weight)


def _exact(weight: torch.dtype) -> torch.dtype:
    return torch.float64 if weight == torch.float64 else torch.float32


def _add(total: Tensor, term: Term, first: int) -> float:
    """Adds one term in place; the sum of its squares, 0 where it is of low rank."""
    if isinstance(term.delta, LowRank):
        up = term.delta.up[first : first + total.shape[0]].to(total.dtype)
        down = term.delta.down.to(total.dtype)
        total.addmm_(up, down, alpha=term.delta.scale * term.strength)
        return 0.0
    delta = term.delta.rows(total, first, term.strength)
    total += delta
    return squares(delta)


def squares(values: Tensor) -> float:
    """The sum of squares."""
    flat = values.reshape(-1)
    return float(torch.dot(flat, flat))


@contextmanager
def exact_products() -> Iterator[None]:
    """No gradients, no autocast, true float32 products, one thread, whatever surrounds it.

    `set_float32_matmul_precision("medium")`, common in training, rounds factors to bfloat16 on
    CPUs that multiply those faster: a merge must not depend on it, nor on the number of threads.
    A merge waits for memory and disk, so that more threads cost CPU time and win little.
    """
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
