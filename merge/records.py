"""What goes into a merge and what comes out of it, as frozen records."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from merge.strength import Strength


@dataclass(frozen=True)
class Addend:
    """One LoRA file and the factor on its delta: any finite number, or apart by network and block.

    0 adds nothing.
    """

    path: Path
    strength: float | Strength


@dataclass(frozen=True)
class LayerReport:
    """What a merge did to one weight. Sizes are root mean squares over the weight's elements."""

    key: str
    """The tensor's key in the base's own layout; `FILE:KEY` in a diffusers folder."""
    module: str
    """The module's name in the LoRA files, such as lora_unet_mid_block_resnets_0_conv1."""
    dtype: str
    """The safetensors name of the dtype written, such as F16."""
    delta_rms: float
    """rms of the sum of all addends' deltas."""
    relative: float
    """delta_rms over the rms of the base's weight; 0 for a weight of zeros."""
    last_rms: float
    """rms of the last addend's delta; 0 where the last addend does not reach this weight."""
    cast_loss: float
    """Share of the last addend's delta that the cast hides, in [0, 1]. With W the float32 sum of
    the base and the addends before the last, D the last addend's delta and c() the cast to the
    output's dtype: min(1, ||(c(W + D) - c(W)) - D|| / ||D||), Euclidean norms, 0 where D is 0."""
    stable_rank: float | None
    """||D||² / σ_max(D)² of all addends' deltas together, from 1 to the rank; None where it was not
    asked for, where D is 0, or where a delta has no thin factors."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did. Deterministic: the same files and strengths give the same report."""

    out: Path
    base: str
    """BLAKE3 of the base, in hexadecimal."""
    addends: tuple[str, ...]
    """BLAKE3 of each LoRA file, in hexadecimal, in the order given."""
    matched: tuple[LayerReport, ...]
    """One row for every weight that an addend reaches, in the base's order."""
    unmatched: tuple[str, ...]
    """LoRA modules that found no weight; empty unless the caller allowed them."""
    relative: float
    """||all deltas|| / ||all matched weights||: how far the merge moved what it touched."""
    cast_loss: float
    """As LayerReport.cast_loss, the norms taken over all layers together."""
    tensors: int
    """Tensors written."""
    size: int
    """Bytes of the output: the file, or the weight files of a folder."""
    warnings: tuple[str, ...]
    """Sentences for a person: what the cast hides, modules that were left out."""

    def to_json(self) -> dict[str, Any]:
        """All of it, for a JSON file."""
        return {**asdict(self), "out": str(self.out)}
