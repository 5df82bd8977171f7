"""How well held-out pictures tell whether a round helped: paired draws and independent ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.toys.denoiser import PIXELS, TIMESTEPS, Samples, fixed, losses, samples
from benchmarks.toys.pictures import gratings
from benchmarks.toys.stack import Weights

PASSES = 64
"""Forward passes of each of the two that are compared."""


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the measured difference, and how often its sign was right."""

    truth: float
    independent: float
    paired: float
    independent_right: float
    paired_right: float

    @property
    def ratio(self) -> float:
        """By what factor pairing cuts the variance."""
        return (self.independent / self.paired) ** 2


def spread(before: Weights, after: Weights, biases: Weights, repeats: int) -> Spread:
    """Measures the difference of two checkpoints (1, out, in) over and over, both ways.

    Independent: each has pictures, timesteps and noise of its own. Paired: the same pictures at
    the same stratified timesteps with the same noise, as the program's held-out loss has them.
    """
    pool = gratings(20_000, 31)
    generator = torch.Generator().manual_seed(32)
    truth_shown = fixed(gratings(4096, 33), 8, 34)
    truth = _mean(before, biases, truth_shown) - _mean(after, biases, truth_shown)
    alone, together = [], []
    for number in range(repeats):
        losses_alone = []
        for weights in (before, after):
            picks = torch.randint(len(pool), (PASSES,), generator=generator)
            timesteps = torch.randint(TIMESTEPS, (1, PASSES), generator=generator)
            noise = torch.randn(1, PASSES, PIXELS, generator=generator)
            shown = samples(pool[picks][None], timesteps, noise)
            losses_alone.append(_mean(weights, biases, shown))
        alone.append(losses_alone[0] - losses_alone[1])
        picks = torch.randint(len(pool), (PASSES // 4,), generator=generator)
        shown = fixed(pool[picks], 4, 1000 + number)
        together.append(_mean(before, biases, shown) - _mean(after, biases, shown))
    first, second = torch.stack(alone), torch.stack(together)
    return Spread(
        float(truth),
        float(first.std()),
        float(second.std()),
        float((first.sign() == truth.sign()).float().mean()),
        float((second.sign() == truth.sign()).float().mean()),
    )


def _mean(weights: Weights, biases: Weights, shown: Samples) -> Tensor:
    return losses(weights, biases, shown).mean()
