"""[train]'s words on precision into what this machine does."""

from contextlib import AbstractContextManager, nullcontext

import torch

from pipeline.errors import RequestError
from pipeline.recipe.train import Storage, Train
from pipeline.train.machine import FP16


def mixed_precision(precision: str) -> str:
    """What accelerate should autocast to, "no", "fp16" or "bf16": fp16 on a GPU where the recipe
    leaves it open.

    Raises:
        RequestError: fp16 without a GPU.
    """
    if precision == "auto":
        return "fp16" if torch.cuda.is_available() else "no"
    if precision == "fp16" and not torch.cuda.is_available():
        raise RequestError(FP16)
    return "no" if precision == "float32" else precision


def judging_precision(mixed: str) -> str:
    """What held-out losses are computed in, for a training autocast to `mixed`: never bf16.

    A layer's output then lies on bf16's grid, and a LoRA that adds less than half a step of it adds
    nothing: on the demo's base late rounds lost four fifths of their effect (test_precision.py).
    """
    return "no" if mixed == "bf16" else mixed


def storage_of(train: Train, mixed: str) -> Storage:
    """How the frozen weights are kept: in the arithmetic's type where the recipe leaves it open."""
    if train.storage != "auto":
        return train.storage
    return {"no": "float32", "fp16": "fp16", "bf16": "bf16"}[mixed]  # type: ignore[return-value]


def autocast(device: torch.device, mixed: str) -> AbstractContextManager[object]:
    """What accelerate puts around a training's products, for those without an accelerator."""
    if mixed == "no":
        return nullcontext()
    return torch.autocast(device.type, dtype={"fp16": torch.float16, "bf16": torch.bfloat16}[mixed])
