"""The rank law: K rounds of rank r against the best approximation of rank K r (Eckart and Young).

y = (W + D) x with a target D of full rank, singular values as the root of their number: a problem
where nothing but rank is in short supply.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.toys.stack import Factors, adam, added, fresh


@dataclass(frozen=True)
class Law:
    """What K rounds reached, of ‖D‖² = 1."""

    rounds: int
    residual: float
    """‖D - learned‖², the mean over the seeds."""
    floor: float
    """Of the best approximation of the same rank."""

    @property
    def error(self) -> float:
        """By what share the residual lies above the floor; of ‖D‖² where the floor is 0."""
        return (self.residual - self.floor) / (self.floor if self.floor > 1e-6 else 1.0)


def rank_law(
    rounds: int, *, size: int = 64, rank: int = 4, steps: int = 3200, seeds: tuple[int, ...] = (0,)
) -> Law:
    """Trains `rounds` rounds of `rank`, `steps` in all, each merged whole into the next one's base.

    Batches of 64, Adam at 1e-2 with a cosine inside each round.
    """
    target = _target(size)
    generator = torch.Generator().manual_seed(1)
    learned = [torch.zeros(len(seeds), size, size)]
    for number in range(rounds):
        factors = fresh(learned, rank, [seed * 101 + number for seed in seeds])
        left = [target - learned[0]]

        def loss(step: int, factors: Factors = factors, left: list[Tensor] = left) -> Tensor:
            shown = torch.randn(64, size, generator=generator)
            missing = left[0] - factors.up[0] @ factors.down[0]
            return (shown @ missing.transpose(-1, -2)).square().mean((1, 2)) * size

        adam(factors.tensors(), loss, steps // rounds, torch.full((len(seeds),), 1e-2))
        learned = added(learned, factors.deltas())
    residual = (target - learned[0]).square().sum((1, 2)).mean()
    squares = torch.linalg.svdvals(target).square()
    return Law(rounds, float(residual), float(squares[rounds * rank :].sum()))


def _target(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(size, size, generator=generator)).Q for _ in range(2)
    )
    values = torch.arange(1, size + 1).rsqrt()
    return left * (values / values.norm()) @ right
