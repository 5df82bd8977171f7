"""A delta's singular values, from thin factors or from a difference, and how many to keep.

    up · down = (Q_u R_u)(Q_d R_d)ᵀ = Q_u (R_u R_dᵀ) Q_dᵀ

so the singular values of the product (out, in) are those of the small matrix R_u R_dᵀ (r, r): the
product itself is never made. A difference of two checkpoints has no factors: its leading part is
found by subspace iteration (Halko, Martinsson, Tropp 2011, arXiv:0909.4061, algorithm 4.4), or from
the smaller Gram matrix in float64 where most of it is wanted. Pure: tensors in, tensors out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.errors import MergeError

OVERSAMPLING = 32
"""Columns beyond those wanted, which take up what the iteration has not yet separated."""
PASSES = 12
"""Most times that the difference is applied and applied back before its leading part is read."""
SETTLED = 1e-4
"""Of the energy found: a pass that finds no more than this is the last."""
FIRST_GUESS = 64
"""Singular values to look for first, where a share of the energy decides how many are wanted."""
WORTH_IT = 3
"""Iteration pays below this fraction of all singular values: beyond it the whole spectrum costs
as much."""
COLUMNS = 4096
"""Of a difference, taken into the Gram matrix at once."""


@dataclass(frozen=True)
class Columns:
    """Orthonormal columns (n, k): as they are, or as a QR's reflectors still to be applied to them.

    To apply reflectors to the few columns that are kept costs a tenth of making all of Q.
    """

    small: Tensor
    """(n, k), or with reflectors (m, k), m <= n."""
    reflectors: tuple[Tensor, Tensor] | None = None
    """Of torch.geqrf, of a matrix of n rows."""

    def first(self, count: int) -> Tensor:
        """(n, count)"""
        wanted = self.small[:, :count]
        if self.reflectors is None:
            return wanted
        packed, scales = self.reflectors
        padded = wanted.new_zeros(packed.shape[0], wanted.shape[1])
        padded[: wanted.shape[0]] = wanted
        return torch.ormqr(packed[:, : len(scales)], scales, padded)


@dataclass(frozen=True)
class Spectrum:
    """left · diag(values) · rightᵀ: a singular value decomposition, or the leading part of one.

    left: (out, k) and right: (in, k), orthonormal. values: (k,), falling.
    """

    left: Columns
    values: Tensor
    right: Columns
    energy: float
    """‖delta‖_F², of all of it, also where only the leading part was computed."""

    def share(self, count: int) -> float:
        """‖the first `count` parts‖ / ‖all‖ in Frobenius norms, in [0, 1]; 1 for a delta of 0."""
        if not self.energy:
            return 1.0
        return math.sqrt(min(1.0, float(self.values[:count].square().sum()) / self.energy))

    def factors(self, count: int) -> tuple[Tensor, Tensor]:
        """up (out, count) and down (count, in) of the best approximation of rank `count`.

        Both take the square root of the values, so that neither leaves the range of fp16.
        """
        root = self.values[:count].sqrt()
        return self.left.first(count) * root, (self.right.first(count) * root).T


@dataclass(frozen=True)
class Cut:
    """How many singular values to keep of each layer. At least one of the three is given.

    rank: at most so many. energy: as few as hold this share of the sum of squares. ratio: those of
    at least the largest / ratio. Given together with one of these, the rank is the most.
    """

    rank: int | None = None
    energy: float | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        """Raises MergeError: nothing given, both shares given, or a number out of its range."""
        if self.rank is None and self.energy is None and self.ratio is None:
            raise MergeError("Say what to keep: a rank, a share of the energy or a ratio.")
        if self.energy is not None and self.ratio is not None:
            raise MergeError("An energy and a ratio exclude each other. Give one of them.")
        if self.rank is not None and self.rank < 1:
            raise MergeError(f"The rank {self.rank} is below 1.")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise MergeError(f"The energy {self.energy} is not in (0, 1]: it is a share, as 0.95.")
        if self.ratio is not None and not 1.0 <= self.ratio < math.inf:
            raise MergeError(f"The ratio {self.ratio} is not a number of at least 1, as 20.")

    @property
    def uniform(self) -> bool:
        """Whether every layer gets the same rank, as far as it has one."""
        return self.energy is None and self.ratio is None

    def count(self, values: Tensor, energy: float) -> int:
        """How many of `values` (falling) to keep, at least 1; all of them where they do not reach.

        energy: ‖delta‖_F² of the whole delta, of which `values` may be the leading part.
        """
        squares = values.double().square()
        count = len(values)
        if self.energy is not None:
            # What rounding adds to or takes from the sum must not cost a whole rank.
            wanted = self.energy * energy * (1.0 - 1e-12)
            count = int((squares.cumsum(0) < wanted).sum()) + 1
        elif self.ratio is not None:
            count = int((values >= values[0] / self.ratio).sum()) if float(values[0]) else 1
        if self.rank is not None:
            count = min(count, self.rank)
        return max(1, min(count, len(values)))


def of_factors(up: Tensor, down: Tensor, scale: float) -> Spectrum:
    """The spectrum of scale · up (out, r) · down (r, in), min(r, out, in) values, in float64."""
    outer, inner = torch.geqrf(up.double()), torch.geqrf(down.double().T)
    upper, lower = (packed[: len(scales)].triu() for packed, scales in (outer, inner))
    left, values, right = torch.linalg.svd(upper @ lower.T * scale, full_matrices=False)
    return Spectrum(
        Columns(left, outer), values, Columns(right.T, inner), float(values.square().sum())
    )


def norm_of_factors(up: Tensor, down: Tensor, scale: float) -> float:
    """‖scale · up · down‖_F from the two Gram matrices (r, r)."""
    up, down = up.double(), down.double()
    square = float(((up.T @ up) * (down @ down.T)).sum())
    return abs(scale) * math.sqrt(max(0.0, square))


def of_matrix(matrix: Tensor, cut: Cut) -> Spectrum:
    """The part of a float32 matrix (out, in) that `cut` keeps, and perhaps some more of it.

    The same matrix gives the same result. Where the leading part was iterated, the share it keeps
    is up to 1 % below the best possible one for pure noise, whose values hardly fall; where a
    training's few directions stand out of the noise, less than 0.02 %.
    """
    energy = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
    if not energy:
        return _nothing(matrix)
    guess = FIRST_GUESS if cut.rank is None else cut.rank
    if not cut.uniform:
        guess = min(guess, FIRST_GUESS)
    while guess + OVERSAMPLING < min(matrix.shape) // WORTH_IT:
        found = _leading(matrix, guess + OVERSAMPLING, energy)
        if cut.count(found.values, energy) <= guess:
            return found
        guess *= 2
    return _whole(matrix, energy)


def _leading(matrix: Tensor, count: int, energy: float) -> Spectrum:
    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn(matrix.shape[1], count, generator=generator, dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ sketch).Q
    captured = 0.0
    for _ in range(PASSES):
        # ‖lower‖² is what the basis holds of ‖matrix‖², and lower itself what is taken apart.
        inner, lower = torch.linalg.qr(matrix.T @ basis)
        before, captured = captured, float(lower.square().sum())
        if captured - before <= SETTLED * captured:
            break
        basis = torch.linalg.qr(matrix @ inner).Q
    else:
        inner, lower = torch.linalg.qr(matrix.T @ basis)
    left, values, right = torch.linalg.svd(lower.T.double(), full_matrices=False)
    return Spectrum(
        Columns(basis.double() @ left), values, Columns(inner.double() @ right.T), energy
    )


def _whole(matrix: Tensor, energy: float) -> Spectrum:
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = torch.zeros(wide.shape[0], wide.shape[0], dtype=torch.float64)
    for exact in _exact_columns(wide):
        gram.addmm_(exact, exact.T)
    squares, basis = torch.linalg.eigh(gram)
    values, basis = squares.flip(0).clamp(min=0.0).sqrt(), basis.flip(1)
    # Values below the rounding of their squares are none; dividing by them would make noise.
    kept = max(1, int((values > values[0] * 1e-7).sum()))
    values, basis = values[:kept], basis[:, :kept]
    other = torch.cat([columns.T @ basis for columns in _exact_columns(wide)])
    other /= values
    left, right = (basis, other) if wide is matrix else (other, basis)
    return Spectrum(Columns(left), values, Columns(right), energy)


def _exact_columns(matrix: Tensor) -> Iterator[Tensor]:
    """Its columns in float64, so many at once that the copy stays small."""
    for first in range(0, matrix.shape[1], COLUMNS):
        yield matrix[:, first : first + COLUMNS].double()


def _nothing(matrix: Tensor) -> Spectrum:
    left, right = (torch.zeros(size, 1, dtype=torch.float64) for size in matrix.shape)
    return Spectrum(Columns(left), torch.zeros(1, dtype=torch.float64), Columns(right), 0.0)


def total_share(parts: Sequence[tuple[float, float]]) -> float:
    """Of (share, energy) of each layer, the share of them together, in Frobenius norms."""
    energy = math.fsum(energy for _, energy in parts)
    kept = math.fsum(share**2 * energy for share, energy in parts)
    return math.sqrt(kept / energy) if energy else 1.0
