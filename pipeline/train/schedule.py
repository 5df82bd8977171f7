"""The learning rate inside a round, as a factor on its peak: a function of the step alone.

Warm-up and laws are diffusers' (`diffusers/optimization.py`), with a floor that its cosines lack:
the end of a round is worth more at a tenth of the peak than at nothing.
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pipeline.errors import RequestError
from pipeline.recipe.train import Train
from pipeline.train.rate import WHOLE, Phase


def warmup_steps(train: Train, steps: int) -> int:
    """Steps over which the rate rises, in a round of `steps`.

    Raises:
        RequestError: the round is not longer than its warm-up, and would never reach its rate.
    """
    if train.scheduler == "constant":
        return 0
    if train.warmup_steps is None:
        return round(train.warmup * steps)
    if train.warmup_steps >= steps:
        raise RequestError(
            f"[train].warmup_steps is {train.warmup_steps} and the round has {steps} steps: it "
            "would end before it reaches its rate. Use fewer, or [train].warmup as a share."
        )
    return train.warmup_steps


def factor(train: Train, step: int, warmup: int, steps: int, phase: Phase = WHOLE) -> float:
    """The share of the peak at `step` (from 0) of a round of `steps`.

    `phase`: the piece of a longer fall that the round runs through; its warm-up rises to where that
    piece begins.
    """
    passed = min(1.0, max(0, step - warmup) / max(1, steps - warmup))
    passed = phase.first + (phase.last - phase.first) * passed
    risen = min(1.0, step / warmup) if warmup else 1.0
    return risen * _fallen(train, passed)


def _fallen(train: Train, passed: float) -> float:
    return train.min_rate + (1 - train.min_rate) * _law(train, passed)


def _law(train: Train, passed: float) -> float:
    """1 at the start, falling to 0 as `passed` goes to 1."""
    match train.scheduler:
        case "linear":
            return 1 - passed
        case "polynomial":
            return float((1 - passed) ** train.power)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * passed))
        case "cosine_with_restarts":
            within = 1.0 if passed >= 1 else (train.cycles * passed) % 1.0
            return 0.5 * (1 + math.cos(math.pi * within))
        case "constant" | "constant_with_warmup":
            return 1.0


def new_schedule(train: Train, optimizer: Optimizer, steps: int, phase: Phase = WHOLE) -> LambdaLR:
    """Moves the rates of all groups of `optimizer` by one factor over `steps`.

    Raises:
        RequestError: the round is not longer than its warm-up.
    """
    warmup = warmup_steps(train, steps)
    return LambdaLR(optimizer, lambda step: factor(train, step, warmup, steps, phase))
