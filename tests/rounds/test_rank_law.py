"""K rounds of rank r reach what no adapter of rank r can: the best approximation of rank K r."""

import pytest
import torch

from benchmarks.toys.linear import rank_law
from pipeline.train.carry import Part, leading


@pytest.mark.parametrize("rounds", [1, 4, 16])
def test_rounds_reach_the_floor_of_their_rank(rounds: int) -> None:
    """Within 1 % of Eckart and Young's floor; of the whole target where the floor is 0."""
    law = rank_law(rounds, size=32, rank=2, steps=1600)
    assert law.floor == pytest.approx({1: 0.6304, 4: 0.3303, 16: 0.0}[rounds], abs=1e-3)
    assert abs(law.error) < 0.01


def test_what_is_carried_is_the_best_approximation_of_the_merged_sum() -> None:
    """Of two parts at their scales, against the singular values of the whole product."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        Part(
            torch.randn(12, rank, generator=generator),
            torch.randn(rank, 9, generator=generator),
            scale,
        )
        for rank, scale in ((4, 0.7), (2, 0.3))
    ]
    whole = sum(part.scale * part.up @ part.down for part in parts)
    assert isinstance(whole, torch.Tensor)
    kept = leading(parts, 2)
    left, values, right = torch.linalg.svd(whole)
    torch.testing.assert_close(kept.up @ kept.down, left[:, :2] * values[:2] @ right[:2])
    # Neither factor takes all of the size: both have the same norms.
    torch.testing.assert_close(kept.up.norm(dim=0), kept.down.norm(dim=1))
