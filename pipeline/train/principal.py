"""A LoRA that starts as the weights' own leading directions: PiSSA (Meng et al. 2024, arXiv
2404.02948).

The paper trains A and B from A0 and B0, where s B0 A0 is the best approximation of W of their rank,
beside the weights that are left, W - s B0 A0. What is trained here is the way from there,
A = A0 + a and B = B0 + b, beside W as it is, by the same gradients:

    s (B A - B0 A0) = s (B0 + b) a + s b A0 = s [B0 + b, b] [a; A0]

Why: weights that are left, rounded to 16 bits, are another base's, in fewer bits even more so; and
two large products whose difference counts, as A0 and B0 at -1 beside A and B would be, lose it in
16 bits, where a step of 1e-5 on a number of 0.1 is a sixth of the way to its neighbour. Nothing is
lost in a sum of small products, on any base, and it takes no more work; and what the right side
says, of twice the rank, is the LoRA that is saved.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.train.carry import Carried, Leading
from pipeline.train.counted import seed_of
from pipeline.train.denoiser import Denoiser
from pipeline.train.naming import kohya_names
from pipeline.train.targets import Target

BEGAN = "began"
"""What A0 and B0 are called beside a and b."""
BESIDE, PASSES = 8, 4
"""More directions than are kept, and passes over the weight, of the randomized decomposition."""


def principal(network: Denoiser, covered: Sequence[Target], seed: int) -> Carried:
    """The leading directions of the weights to adapt, as many as their LoRAs have, by kohya's name.

    By a randomized decomposition (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithm 5.1),
    in float32, drawn from `seed`: what it is short of the best directions changes nothing but where
    the training begins.
    """
    names = kohya_names(network, [target.name for target in covered])
    found = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for target in covered:
            weight: Tensor = network.get_submodule(target.name).weight  # type: ignore[assignment]
            matrix = weight.float().flatten(1)
            torch.manual_seed(seed_of(seed, "principal", target.name))
            count = min(target.rank + BESIDE, *matrix.shape)
            left, values, right = torch.svd_lowrank(matrix, count, PASSES)
            root = values[: target.rank].sqrt()
            up, down = left[:, : target.rank] * root, (right[:, : target.rank] * root).T
            found[names[target.name]] = Leading(up.contiguous(), down.contiguous())
    return found


def begin_there(layer: LoraLayer, name: str, leading: Leading | None) -> None:
    """Lets adapter `name` begin at `leading` of the layer's weight: nothing changes.

    Args:
        leading: None where a resume point will say it.
    """
    down, up = layer.lora_A[name], layer.lora_B[name]
    for factor, forward in ((down, _down), (up, _up)):
        factor.weight.data.zero_()
        began = nn.Parameter(torch.zeros_like(factor.weight), requires_grad=False)
        factor.register_parameter(BEGAN, began)
        factor.__dict__["forward"] = partial(forward, factor)
    if leading is not None:
        root = layer.scaling[name] ** 0.5
        down.began.data.copy_((leading.down / root).view_as(down.began))
        up.began.data.copy_((leading.up / root).view_as(up.began))


def beginnings(network: nn.Module) -> dict[str, nn.Parameter]:
    """A0 and B0 of every layer by their names in `network`; none where the start is another."""
    return {n: p for n, p in network.named_parameters() if n.endswith(f".{BEGAN}")}


def whole(layer: LoraLayer, name: str) -> tuple[Tensor, Tensor]:
    """The factors of what adapter `name` adds, at its scale: down (R, in[, k, k]) and up (out, R[,
    1, 1]), where R is its rank, or twice that where it began at the weights' own directions."""
    down, up = layer.lora_A[name], layer.lora_B[name]
    if not hasattr(down, BEGAN):
        return down.weight, up.weight
    return _rows(down), _columns(up)


def _rows(down: Any) -> Tensor:
    return torch.cat([down.weight, down.began])


def _columns(up: Any) -> Tensor:
    return torch.cat([up.began + up.weight, up.weight], 1)


def _down(factor: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    return _product(factor, x, _rows(factor))


def _up(factor: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    return _product(factor, x, _columns(factor))


def _product(factor: nn.Linear | nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """peft's factors have no bias."""
    if isinstance(factor, nn.Conv2d):
        how: Any = (factor.stride, factor.padding, factor.dilation, factor.groups)
        return F.conv2d(x, weight, None, *how)
    return F.linear(x, weight)
