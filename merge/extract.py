"""Finds a LoRA that turns one checkpoint into another: the leading part of each layer's difference.

    urushi lora extract TUNED BASE --rank 32 --out FILE

One layer at a time, float32 differences; merge/thin.py says how the leading part is found. A layer
whose difference is no larger than what storing it rounds away says nothing, and is left out.
"""

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from merge.arithmetic import dtype_named, exact_products
from merge.errors import MergeError, listed
from merge.identity import identity
from merge.layers import Base, Layer, Network
from merge.layout import look
from merge.lineage import ARCHITECTURES
from merge.lora_layout import Layout, spelled
from merge.lora_metadata import said, source
from merge.pairs import pairs
from merge.resize import ThinLayer
from merge.rounding import is_noise
from merge.thin import Cut, of_matrix
from merge.weights import TENSORS, Tensors, Weights

NETWORKS: tuple[Network, ...] = ("unet", "te1", "te2")

INSIDE = ("attentions", "resnets", "downsamplers", "upsamplers", "encoder")
"""A layer below one of these can be in a LoRA. The ends of the UNet cannot: programs that read
kohya's files look for no LoRA there."""


@dataclass(frozen=True)
class Left:
    """A weight whose difference is not in the LoRA, and why."""

    name: str
    reason: str
    """"rounding", "no LoRA layer" or "not asked for"; weights that are equal are not listed."""
    norm: float
    """‖difference‖_F."""


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction found. Layers in the file's order."""

    out: Path
    tuned: str
    base: str
    """BLAKE3 of both checkpoints."""
    layers: tuple[ThinLayer, ...]
    """`before` is the smaller side of the layer, the most that the rank could be."""
    left: tuple[Left, ...]
    equal: int
    """Weights and biases without any difference."""
    share: float
    """‖all that is kept‖_F / ‖all differences of UNet and text encoders‖_F, embeddings apart."""
    size: int
    """Bytes of the output."""


def extract(
    tuned: Path,
    base: Path,
    out: Path,
    cut: Cut,
    *,
    conv_rank: int | None = None,
    networks: Collection[Network] = NETWORKS,
    layout: Layout = "kohya",
    dtype: str = "float16",
    metadata: Mapping[str, str] | None = None,
    on_layer: Callable[[int, int], None] | None = None,
    identities: Mapping[Path, str] | None = None,
) -> ExtractReport:
    """Writes a LoRA near `tuned` - `base`: per layer the best one of the rank that `cut` allows.

    Single files and diffusers folders, SD 1.5 and SDXL, in any dtypes. Memory holds one layer.

    Args:
        cut: what to keep of every layer.
        conv_rank: the most for convolutions with a kernel larger than 1 × 1, in the place of the
            cut's rank; 0 leaves them out.
        networks: whose layers to look at.
        layout: of the output.
        dtype: of the output: "float16", "bfloat16" or "float32".
        metadata: added to the output's.
        on_layer: called with (layers done, layers in all).
        identities: BLAKE3 hashes that the caller remembers, by path.

    Raises:
        MergeError: two families, layers that only one has or of two shapes, NaN, no difference at
            all, no room (3), no permission (2).
    """
    target = dtype_named(dtype) or "F16"
    new, old = look(tuned), look(base)
    _refuse_strangers(new, old)
    work = _Work(networks, cut, conv_rank)
    with ExitStack() as stack:
        stack.enter_context(exact_products())
        after, before = Weights(new, stack), Weights(old, stack)
        written = stack.enter_context(pairs(out, layout, [tuned, base]))
        for number, layer in enumerate(new.layers.values()):
            for tensor in TENSORS:
                found = work.compare(after, before, layer, tensor)
                if found is not None:
                    up, down = found
                    name = spelled(layer.name, layout, new.family)
                    written.add(name, up, down, float(len(down)), layer.shape[1:], target)
            if on_layer is not None:
                on_layer(number + 1, len(new.layers))
        if not work.layers:
            raise MergeError(_nothing(tuned, base, work))
        hashes = [identity(path, identities) for path in (tuned, base)]
        lineage = {
            "tuned": source(hashes[0], new.parts[0].header.metadata),
            "base": source(hashes[1], old.parts[0].header.metadata),
            "extracted": said(cut, conv_rank),
        }
        size = written.write({}, lineage, f"{ARCHITECTURES[new.family]}/lora", metadata or {})
    total = math.fsum(work.energies)
    kept = math.fsum((row.share * row.norm) ** 2 for row in work.layers)
    return ExtractReport(
        out=out,
        tuned=hashes[0],
        base=hashes[1],
        layers=tuple(work.layers),
        left=tuple(work.left),
        equal=work.equal,
        share=math.sqrt(kept / total),
        size=size,
    )


def _refuse_strangers(new: Base, old: Base) -> None:
    if new.family != old.family:
        raise MergeError(
            f"{new.path} and {old.path} are of different families ({new.family}, {old.family}): "
            "there is no difference to take."
        )
    alone = sorted(new.layers.keys() ^ old.layers.keys())
    if alone:
        raise MergeError(
            f"Only one of {new.path} and {old.path} has {listed(alone, 6)}: "
            "the one was not made from the other."
        )
    odd = [name for name, layer in new.layers.items() if layer.shape != old.layers[name].shape]
    # proj_in may be linear in one and a 1x1 convolution in the other: the same numbers.
    odd = [name for name in odd if _wide(new.layers[name]) != _wide(old.layers[name])]
    if odd:
        name = odd[0]
        raise MergeError(
            f"{listed(odd, 6)}: other sizes in {new.path} than in {old.path} "
            f"({list(new.layers[name].shape)}, {list(old.layers[name].shape)}). "
            "Is one of them an inpainting model, or of another size?"
        )


def _wide(layer: Layer) -> tuple[int, ...]:
    return (*layer.shape, *(1,) * (4 - len(layer.shape)))


class _Work:
    """What was found so far."""

    def __init__(self, networks: Collection[Network], cut: Cut, conv_rank: int | None) -> None:
        self.layers: list[ThinLayer] = []
        self.left: list[Left] = []
        self.energies: list[float] = []
        self.equal = 0
        self._networks = networks
        self._cut = cut
        self._conv = cut if not conv_rank else replace(cut, rank=conv_rank)
        self._no_conv = conv_rank == 0

    def compare(
        self, after: Weights, before: Weights, layer: Layer, tensor: Tensors
    ) -> tuple[Tensor, Tensor] | None:
        """Takes one tensor's difference apart into up and down, or notes why not."""
        new, old = after.read(layer.name, tensor), before.read(layer.name, tensor)
        if new is None or old is None:
            if new is not old:
                raise MergeError(f"Only one checkpoint has {layer.name}.{tensor}.")
            return None
        matrix = new[0] - old[0]
        energy = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
        if not energy:
            self.equal += 1
            return None
        coarser = max(new, old, key=lambda read: torch.finfo(read[1]).eps)
        if is_noise(energy, *coarser):
            # Not part of the whole: nothing is known of it.
            self.left.append(Left(f"{layer.name}.{tensor}", "rounding", math.sqrt(energy)))
            return None
        self.energies.append(energy)
        reason = self._reason(layer, tensor)
        if reason:
            self.left.append(Left(f"{layer.name}.{tensor}", reason, math.sqrt(energy)))
            return None
        cut = self._conv if _wide(layer)[2:] != (1, 1) else self._cut
        spectrum = of_matrix(matrix, cut)
        count = cut.count(spectrum.values, energy)
        self.layers.append(
            ThinLayer(
                name=layer.name,
                before=min(matrix.shape),
                rank=count,
                norm=math.sqrt(energy),
                share=spectrum.share(count),
            )
        )
        return spectrum.factors(count)

    def _reason(self, layer: Layer, tensor: Tensors) -> str:
        if tensor == "bias" or len(layer.shape) < 2 or not _inside(layer.name):
            return "no LoRA layer"
        spatial = _wide(layer)[2:] != (1, 1)
        unwanted = layer.network not in self._networks or (spatial and self._no_conv)
        return "not asked for" if unwanted else ""


def _inside(name: str) -> bool:
    return any(f".{word}." in name for word in INSIDE)


def _nothing(tuned: Path, base: Path, work: _Work) -> str:
    if not work.left:
        return f"{tuned} and {base} do not differ in any layer: there is nothing to extract."
    reasons: dict[str, list[str]] = {}
    for left in work.left:
        reasons.setdefault(left.reason, []).append(left.name)
    why = "; ".join(f"{reason}: {listed(names, 3)}" for reason, names in reasons.items())
    return f"{tuned} and {base} differ nowhere that a LoRA can hold ({why})."
