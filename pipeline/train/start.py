"""How a round's LoRA starts, by the policies of [rounds].start. The function never changes.

    fresh      down by Kaiming, up 0
    kept       the down of the round before, up 0
    gradient   down from the gradient's leading right singular directions, up 0
    carried    half of the last LoRA's directions, trained on; beside them the gradient's, up 0
    pissa      the weights' own leading directions (pipeline.train.principal)

The gradient of a layer's weight G (out, in) is never made: with up 0 the gradient of up is
scale x G x downᵀ, and with down 0 that of down is scale x upᵀ x G. Two passes over a few batches
are one subspace iteration from random rows (Halko, Martinsson, Tropp 2011, arXiv 0909.4061,
algorithm 4.4), in the memory that training needs anyway.
"""

from collections.abc import Callable

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor

from pipeline.train.adapter import NAME, named, trainable
from pipeline.train.carry import Carried
from pipeline.train.denoiser import Denoiser
from pipeline.train.plan import Start
from pipeline.train.principal import begin_there

BATCHES = 8
"""That a gradient is the mean of."""
KAIMING = 3**-0.5
"""The norm of a row that Kaiming draws, whatever the layer's width."""


def begin(network: Denoiser, start: Start, carried: Carried, leading: Carried) -> None:
    """Fills a fresh adapter with what is taken over.

    Args:
        carried: was taken out of the weights.
        leading: the weights' own directions, for the policy that begins at them.
    """
    last = load_file(start.loras[-1]) if start.policy == "kept" and start.loras else {}
    for name, layer in named(network):
        down, up = _factors(layer)
        if start.principal:
            begin_there(layer, NAME, leading.get(name))
        elif name in carried:
            rank, root = len(carried[name].down), layer.scaling[NAME] ** 0.5
            down[:rank] = carried[name].down / root
            up[:, :rank] = carried[name].up / root
        elif f"{name}.lora_down.weight" in last:
            rows = last[f"{name}.lora_down.weight"].flatten(1)[: len(down)]
            down[: len(rows)] = rows


def aim(network: Denoiser, carried: Carried, gradients: Callable[[], None]) -> None:
    """Turns the rows that are not carried towards the gradient's leading directions.

    `gradients` adds the gradient of a few batches' mean loss to the factors' `grad`. A layer whose
    gradient is not finite (in half precision), or zero, keeps its rows. No gradient is left over.
    """
    drawn = {}
    gradients()
    for name, layer in named(network):
        (down, up), given = _factors(layer), _given(name, carried)
        basis = torch.linalg.qr(_gradient(layer.lora_B[NAME].weight)[:, given:]).Q
        drawn[name] = down[given:].clone()
        down[given:] = 0
        up[:, given:] = basis.nan_to_num(0.0)
    gradients()
    for name, layer in named(network):
        (down, up), given = _factors(layer), _given(name, carried)
        rows = _gradient(layer.lora_A[NAME].weight)[given:]
        up[:, given:] = 0
        down[given:] = drawn[name]
        if len(rows) and bool(torch.isfinite(rows).all()) and bool(rows.any()):
            beside = torch.linalg.qr(down[:given].T).Q
            rows = rows - (rows @ beside) @ beside.T
            down[given:] = torch.linalg.svd(rows, full_matrices=False).Vh * KAIMING
    for parameter in trainable(network):
        parameter.grad = None  # A DoRA's magnitudes have one too.


def _factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """down (r, in) and up (out, r), of the adapter's own storage."""
    down, up = layer.lora_A[NAME].weight.data, layer.lora_B[NAME].weight.data
    return down.view(len(down), -1), up.view(len(up), -1)


def _gradient(weight: Tensor) -> Tensor:
    """(rows, columns), taken away from the parameter."""
    assert weight.grad is not None
    gradient, weight.grad = weight.grad.float().flatten(1), None
    return gradient


def _given(name: str, carried: Carried) -> int:
    return len(carried[name].down) if name in carried else 0
