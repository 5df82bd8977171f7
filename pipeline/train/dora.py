"""The magnitudes of a DoRA (Liu et al. 2024, arXiv 2402.09353), which peft trains with its factors.

A layer becomes W' = m x V / ||V|| with V = W + delta, the norm over each output's weights. At a
strength s it is W + s (W' - W), as our merge has it: peft's own scale would go inside the norm.
"""

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


def begin_magnitudes(layer: LoraLayer, name: str) -> None:
    """Sets adapter `name`'s magnitudes to the norms of the layer's weights: nothing changes.

    peft measures them in the base's dtype, where fp16 would already move the function.
    """
    magnitudes = layer.lora_magnitude_vector[name]
    weight: Tensor = layer.get_base_layer().weight
    with torch.no_grad():
        norm = magnitudes.get_weight_norm(weight.float(), 0.0, layer.scaling[name])
    magnitudes.weight = nn.Parameter(norm)
    magnitudes.strength = 1.0
    magnitudes.register_forward_hook(_at_strength)


def _at_strength(magnitudes: Any, _: Any, difference: Tensor) -> Tensor:
    """Of (W' - W) x, which peft adds to the layer's output."""
    return difference if magnitudes.strength == 1.0 else difference * magnitudes.strength


def has_magnitudes(layer: LoraLayer, name: str) -> bool:
    """Whether adapter `name` of the layer is a DoRA."""
    return name in layer.lora_magnitude_vector


def dora_scale(layer: LoraLayer, name: str) -> Tensor:
    """The magnitudes as files have them: (out, 1[, 1, 1]), the layer's weight with ones behind."""
    weight = layer.get_base_layer().weight
    norms: Tensor = layer.lora_magnitude_vector[name].weight.detach().float().cpu()
    return norms.reshape(-1, *[1] * (weight.dim() - 1)).contiguous()


def fill_magnitudes(layer: LoraLayer, name: str, values: Tensor) -> None:
    """Puts a file's magnitudes, one for each output, into adapter `name`."""
    weight = layer.lora_magnitude_vector[name].weight
    weight.data = values.float().reshape(weight.shape).to(weight.device)
