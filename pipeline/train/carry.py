"""What a carried round takes over: the leading directions of the LoRA before, as it was merged.

They are trained on. To leave the function as it is, they are taken out of the weights that the
round trains on, and what the round saves is its net delta: its LoRA beside the carried part at -1,
one file of at most one and a half times the rank. So a chain adds up, shrinks, drops and rebuilds
carried rounds as it does any others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from merge.thin import of_factors
from pipeline.artefacts.strength import Strength, on
from pipeline.train.denoiser import Denoiser
from pipeline.train.naming import kohya_names

SHARE = 0.5
"""Of a LoRA's rank."""
MARK = "urushi_carried"
"""In a file's metadata: its last directions take a carried part back."""


@dataclass(frozen=True)
class Part:
    """One summand of a layer's delta: scale x up x down."""

    up: Tensor
    """(out, r)"""
    down: Tensor
    """(r, in): of a convolution with its kernel flattened, in x k x k."""
    scale: float


@dataclass(frozen=True)
class Leading:
    """The best approximation of a sum of parts: up x down, each with the root of the values."""

    up: Tensor
    """(out, k) float32"""
    down: Tensor
    """(k, in) float32"""


Carried = Mapping[str, Leading]
"""By kohya's name of the layer."""


def leading(parts: Sequence[Part], count: int) -> Leading:
    """The `count` leading directions of the sum of `parts`, or as many as the layer has.

    QR of the factors and the singular values of a small matrix, in float64 (merge.thin).
    """
    up = torch.cat([part.up.double() * part.scale for part in parts], 1)
    down = torch.cat([part.down.double() for part in parts])
    if count == 0:
        return Leading(up[:, :0].float(), down[:0].float())
    kept_up, kept_down = of_factors(up, down, 1.0).factors(count)
    return Leading(kept_up.float().contiguous(), kept_down.float().contiguous())


def carried_over(chain: Sequence[tuple[Path, Strength]]) -> Carried:
    """What the round after `chain`, the merged LoRAs and their strengths in order, takes over.

    A round that was itself a carried one left strength x its LoRA + (1 - strength) x what it had
    been given trainable: the rest of its delta is part of the weights.
    """
    carried: dict[str, Leading] = {}
    for path, merged_at in chain:
        with safe_open(path, "pt") as file:
            marked = MARK in (file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        now = {}
        for name, whole in _parts(tensors).items():
            strength, before = on(merged_at, name), carried.get(name) if marked else None
            given = 0 if before is None else len(before.down)
            rank = len(whole.down) - given
            parts = [Part(whole.up[:, :rank], whole.down[:rank], whole.scale * strength)]
            if before is not None:
                parts.append(Part(before.up, before.down, 1 - strength))
            now[name] = leading(parts, int(rank * SHARE))
        carried = now
    return carried


def take_out(network: Denoiser, modules: Sequence[str], carried: Carried) -> None:
    """Subtracts `carried` from the float32 weights of `modules`, in place."""
    for module, name in kohya_names(network, modules).items():
        if name in carried:
            weight: Tensor = network.get_submodule(module).weight  # type: ignore[assignment]
            delta = carried[name].up @ carried[name].down
            weight.data -= delta.view_as(weight).to(weight)


def net(tensors: Mapping[str, Tensor], carried: Carried) -> dict[str, Tensor]:
    """The delta that a carried round adds: its LoRA, and beside it `carried` at -1.

    The trained factors stay as they are, in the first rows and columns; alpha grows with the rank.

    Args:
        tensors: under kohya's names, as `adapter.factors` gives them.
    """
    out = dict(tensors)
    for name, kept in carried.items():
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        alpha, rank, more = tensors[f"{name}.alpha"], len(down), len(kept.down)
        scale = float(alpha) / rank
        back = (-kept.up / scale).view(len(up), more, *up.shape[2:])
        out[f"{name}.lora_down.weight"] = torch.cat([down, kept.down.view(more, *down.shape[1:])])
        out[f"{name}.lora_up.weight"] = torch.cat([up, back], 1)
        out[f"{name}.alpha"] = torch.tensor(scale * (rank + more))
    return out


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    """A kohya file's layers."""
    found = {}
    for key, down in tensors.items():
        name, _, part = key.partition(".")
        if part == "lora_down.weight":
            scale = float(tensors[f"{name}.alpha"]) / len(down)
            up = tensors[f"{name}.lora_up.weight"]
            found[name] = Part(up.float().flatten(1), down.float().flatten(1), scale)
    return found
