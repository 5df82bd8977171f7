"""Keeps a LoRA's deltas within a norm: after each step what is above it is scaled back.

||scale x up x down|| in Frobenius' norm; both factors by the root of what the delta is scaled by,
as kohya's scale_weight_norms (kohya-ss/sd-scripts, networks/lora.py,
apply_max_norm_regularization).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.train.adapter import NAME, named
from pipeline.train.denoiser import Denoiser


class MaxNorm:
    """The norms of one training's layers, and how often each was scaled back.

    Nothing is read off the device inside a step.
    """

    def __init__(self, network: Denoiser, largest: float) -> None:
        self._layers = dict(named(network))
        self._largest = largest
        self._times: Tensor | None = None
        """(layers,): in how many steps each was scaled."""

    @torch.no_grad()
    def apply(self) -> None:
        """Scales back what is above the largest norm."""
        factors = [
            (layer.lora_B[NAME].weight, layer.lora_A[NAME].weight)
            for layer in self._layers.values()
        ]
        norms = [
            _norm(up, down) * layer.scaling[NAME]
            for (up, down), layer in zip(factors, self._layers.values(), strict=True)
        ]
        norm = torch.stack(norms)
        above = norm > self._largest
        share = torch.where(above, self._largest / norm, 1.0).sqrt()
        for (up, down), root in zip(factors, share, strict=True):
            up.mul_(root)
            down.mul_(root)
        self._times = above.long() if self._times is None else self._times + above

    def times(self) -> dict[str, int]:
        """By kohya's name, of the layers that were ever scaled: in how many steps."""
        if self._times is None:
            return {}
        counted = zip(self._layers, self._times.tolist(), strict=True)
        return {name: count for name, count in counted if count}

    def take(self, times: Mapping[str, int]) -> None:
        """Goes on counting from `times` of an earlier process."""
        device = next(iter(self._layers.values())).lora_A[NAME].weight.device
        counts = [times.get(name, 0) for name in self._layers]
        self._times = torch.tensor(counts, device=device)

    def told(self) -> dict[str, Any]:
        """For the receipt: how many layers were scaled, in how many steps at most, and which."""
        times = self.times()
        most = sorted(times, key=lambda name: (-times[name], name))[:3]
        return {"layers": len(times), "steps": max(times.values(), default=0), "most": most}

    def sentence(self) -> str:
        """What was scaled, for the person who watches."""
        told = self.told()
        if not told["layers"]:
            return f"no layer's delta reached [lora].max_norm {self._largest:g}"
        return (
            f"[lora].max_norm {self._largest:g} scaled back {told['layers']} of "
            f"{len(self._layers)} layers, in {told['steps']} steps at most: "
            f"{', '.join(told['most'])} most often"
        )


def _norm(up: Tensor, down: Tensor) -> Tensor:
    """|| up (out, r) x down (r, in) ||, from matrices of (r, r)."""
    up, down = up.flatten(1), down.flatten(1)
    return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt()
