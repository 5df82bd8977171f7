"""How large a sum of low-rank deltas is, from its thin factors: never the product itself.

With U = [s_1·up_1 | s_2·up_2 | …] and D = [down_1; down_2; …] the sum is U·D, and
‖U·D‖² = Σ (UᵀU) ∘ (DDᵀ); its singular values are the roots of the eigenvalues of
(UᵀU)^½ · DDᵀ · (UᵀU)^½. All of these matrices have the size of the rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.delta import Term
from merge.forms import LowRank


@dataclass(frozen=True)
class Sizes:
    """Of all terms' deltas together and of the last addend's; None where a term is not thin."""

    delta: float | None
    """Sum of squares."""
    last: float | None
    """Sum of squares; 0 where the last addend has no term here."""
    stable_rank: float | None
    """‖Δ‖² / σ_max², from 1 to the rank; None also where it was not asked for, or Δ is 0."""


def of_terms(terms: Sequence[Term], stable_rank: bool = False) -> Sizes:
    """Sizes of the deltas of one weight."""
    last = [term for term in terms if term.last]
    thin_last = _grams(last)
    every = thin_last if len(last) == len(terms) else _grams(terms)
    rank = None if every is None or not stable_rank else _stable_rank(*every)
    return Sizes(_squares(every), _squares(thin_last), rank)


def _grams(terms: Sequence[Term]) -> tuple[Tensor, Tensor] | None:
    """UᵀU and DDᵀ in float64, (R, R), R being the sum of the ranks."""
    ups, downs = [], []
    for term in terms:
        if not isinstance(term.delta, LowRank):
            return None
        ups.append(term.delta.up * (term.delta.scale * term.strength))
        downs.append(term.delta.down)
    if not ups:
        return torch.zeros(0, 0), torch.zeros(0, 0)
    up, down = torch.cat(ups, dim=1), torch.cat(downs)
    return (up.T @ up).double(), (down @ down.T).double()


def _squares(grams: tuple[Tensor, Tensor] | None) -> float | None:
    # Terms that cancel each other may leave a rounding error below 0.
    return None if grams is None else max(0.0, float((grams[0] * grams[1]).sum()))


def _stable_rank(up: Tensor, down: Tensor) -> float | None:
    if not up.numel():
        return None
    values, vectors = torch.linalg.eigh(up)
    root = vectors * values.clamp(min=0).sqrt()
    squared = torch.linalg.eigvalsh(root.T @ down @ root).clamp(min=0)
    largest = float(squared[-1])
    return float(squared.sum()) / largest if largest > 0 else None
