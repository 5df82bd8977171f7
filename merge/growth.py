"""What each LoRA added to a chain: how far, in which directions, and which of them are new.

From thin factors alone: products of (rank, rank) matrices give norms and cosines, one QR of all
factors side by side the spectrum of the sum. Only the intruders need the base's own weights.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from merge.arithmetic import exact_products
from merge.layout import look
from merge.lora import Factors, LoraFile, open_loras
from merge.strength import Strength
from merge.thin import Cut, Spectrum, of_factors, of_matrix
from merge.weights import Weights

TOP = 10
"""Leading directions of a weight that are looked at for intruders."""
SPAN = 64
"""Leading directions of the base's weight that a direction may lie in to be none."""
FAMILIAR = 0.5
"""Of a direction's length: what lies in that span of one that is no intruder."""


@dataclass(frozen=True)
class LayerGrowth:
    """One layer after the last addend. Norms are Frobenius', strengths included."""

    module: str
    last: float
    """‖the last addend's delta‖."""
    total: float
    """‖all deltas together‖."""
    effective_rank: float
    """Of all deltas together: exp of the entropy of the singular values' shares of their sum (Roy
    and Vetterli 2007), from 1 to the number of ranks laid."""


@dataclass(frozen=True)
class Growth:
    """A chain after its last addend."""

    layers: tuple[LayerGrowth, ...]
    cosines: tuple[float, ...]
    """Of the last delta with each earlier one, over all layers together: near 0 it went another
    way, below 0 it took back, near 1 it only went further. 0 where either is 0."""


def growth(loras: Sequence[tuple[Path, float | Strength]]) -> Growth:
    """Looks at a chain of (file, strength); the files' modules are read one layer at a time.

    Of modules of the last file that are not two factors nothing is said.

    Raises:
        MergeError: a file that is no LoRA, or NaN in it.
    """
    with exact_products(), open_loras([path for path, _ in loras]) as files:
        last = files[-1]
        inner = [[0.0, 0.0] for _ in loras]
        own, layers = 0.0, []
        for name, module in last.modules.items():
            if not last.is_thin(module):
                continue
            chain = [
                (number, _scaled(file, name, strength))
                for number, (file, (_, strength)) in enumerate(zip(files, loras, strict=True))
                if name in file.modules and file.is_thin(file.modules[name])
            ]
            _, newest = chain[-1]
            square = _product(newest, newest)
            own += square
            for number, factors in chain:
                inner[number][0] += _product(factors, newest)
                inner[number][1] += _product(factors, factors)
            spectrum = _sum([factors for _, factors in chain])
            layers.append(
                LayerGrowth(
                    name,
                    math.sqrt(max(0.0, square)),
                    math.sqrt(spectrum.energy),
                    effective_rank(spectrum.values),
                )
            )
    return Growth(tuple(layers), tuple(_cosine(both, one, own) for both, one in inner[:-1]))


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of `values` (falling, >= 0) as shares of their sum; 0 where all are 0."""
    total = float(values.sum())
    if not total:
        return 0.0
    shares = values.double() / total
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def intruders(
    base: Path, loras: Sequence[tuple[Path, float | Strength]], modules: Sequence[str]
) -> Mapping[str, int]:
    """How many of each changed weight's 10 leading directions the base's own did not have.

    A direction (left singular vector) of the sum is an intruder where less than half of its length
    lies in the span of the base weight's 64 leading ones, or of half of them in a smaller layer.
    After Shuttleworth et al. 2024, arXiv 2410.21228, who ask it of each vector and not of a span,
    which takes a whole decomposition; a turn within the leading directions is none here.

    Args:
        modules: names in the last file, of the layers to look at; one takes up to seconds.
    """
    found = {}
    with ExitStack() as stack:
        stack.enter_context(exact_products())
        files = stack.enter_context(open_loras([path for path, _ in loras]))
        layout = look(base)
        weights = Weights(layout, stack)
        for name in modules:
            layer = layout.spellings.get(name)
            read = weights.read(layer, "weight") if layer is not None else None
            if read is None:
                continue
            before, delta = read[0], torch.zeros_like(read[0])
            for file, (_, strength) in zip(files, loras, strict=True):
                if name in file.modules:
                    factors = _scaled(file, name, strength)
                    delta += factors.up.to(delta.dtype) @ factors.down.to(delta.dtype)
            found[name] = _new_directions(before, before + delta)
    return found


def _new_directions(before: Tensor, after: Tensor) -> int:
    most = min(before.shape)
    span, top = min(SPAN, most // 2), min(TOP, most // 4)
    if not top:
        return 0
    known = of_matrix(before, Cut(rank=span)).left.first(span)
    asked = of_matrix(after, Cut(rank=top)).left.first(top)
    within = torch.linalg.vector_norm(known.T @ asked, dim=0)
    return int((within < FAMILIAR).sum())


def _scaled(file: LoraFile, name: str, strength: float | Strength) -> Factors:
    """In float64, with alpha / rank and the strength in up."""
    if isinstance(strength, Strength):
        strength = strength.on(name)
    factors = file.thin(file.modules[name])
    return Factors(factors.up.double() * (factors.scale * strength), factors.down.double(), 1.0)


def _product(one: Factors, other: Factors) -> float:
    """The inner product of two deltas."""
    return float(((one.up.T @ other.up) * (one.down @ other.down.T)).sum())


def _sum(chain: Sequence[Factors]) -> Spectrum:
    return of_factors(
        torch.cat([factors.up for factors in chain], dim=1),
        torch.cat([factors.down for factors in chain]),
        1.0,
    )


def _cosine(both: float, one: float, other: float) -> float:
    size = math.sqrt(max(0.0, one) * max(0.0, other))
    return both / size if size else 0.0
