"""The optimizers that a recipe may name, as a table one can read."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from pipeline.recipe.train import Train

OPTIMIZERS: tuple[tuple[str, str, str], ...] = (
    ("adamw", "torch.optim", "AdamW"),
    ("adamw8bit", "bitsandbytes.optim", "AdamW8bit"),
    ("lion", "bitsandbytes.optim", "Lion"),
    ("lion8bit", "bitsandbytes.optim", "Lion8bit"),
)
"""(name in recipes, module, class)."""


def new_optimizer(
    train: Train, parameters: list[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """The recipe's optimizer over `parameters`, fresh: a round never carries an old state over."""
    module, kind = {name: (module, kind) for name, module, kind in OPTIMIZERS}[train.optimizer]
    build: Callable[..., Any] = getattr(import_module(module), kind)
    optimizer: torch.optim.Optimizer = build(
        parameters, lr=learning_rate, betas=train.betas, weight_decay=train.weight_decay
    )
    return optimizer
