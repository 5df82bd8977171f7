"""Rank and module dropout of a LoRA, which peft has not; its own dropout, of the input, peft has.

    rank      of each picture some directions are left out, the others grow for it
    module    of each batch some layers' deltas are left out whole, the others stay as they are

After kohya's networks (kohya-ss/sd-scripts, networks/lora.py). What is left out is drawn from
torch's generator, which training seeds by (seed, round, batch), so that a resumed run leaves out
the same. Nothing is left out where the network is judged.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.recipe.lora import Lora
from pipeline.train.adapter import NAME, layers
from pipeline.train.denoiser import Denoiser


def add_dropouts(network: Denoiser, lora: Lora) -> None:
    """Lets the round's adapter leave out what the recipe says while `network` is in training."""
    for _, layer in layers(network):
        if NAME not in layer.lora_A:
            continue
        if lora.rank_dropout:
            layer.lora_A[NAME].register_forward_hook(partial(_directions, lora.rank_dropout))
        if lora.module_dropout:
            layer.lora_B[NAME].register_forward_hook(partial(_layer, lora.module_dropout))


def _directions(share: float, module: nn.Module, _: Any, projected: Tensor) -> Tensor | None:
    """`projected`: (B, …, r) of a linear layer, (B, r, H, W) of a convolution."""
    if not module.training:
        return None
    rank = len(module.weight)  # type: ignore[arg-type]
    size = [1] * projected.dim()
    size[0] = len(projected)
    along = 1 if isinstance(module, nn.Conv2d) else -1
    size[along] = rank
    kept = torch.rand(size, device=projected.device) >= share
    # A direction that began elsewhere than at 0 stands there twice.
    kept = torch.cat([kept] * (projected.shape[along] // rank), along)
    return projected * (kept / (1 - share)).to(projected.dtype)


def _layer(share: float, module: nn.Module, _: Any, delta: Tensor) -> Tensor | None:
    if not module.training:
        return None
    return delta * (torch.rand((), device=delta.device) >= share).to(delta.dtype)
