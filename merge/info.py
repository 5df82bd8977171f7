"""Describes a LoRA file: family, writer, forms, ranks, alphas, sizes, what its metadata tells.

urushi lora info LORA [--json]
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from merge.arithmetic import exact_products
from merge.identity import identity
from merge.layers import Family
from merge.lora import LoraFile, Module, open_loras
from merge.lora_metadata import family_of
from merge.spelling import dotted
from merge.thin import norm_of_factors

T = TypeVar("T", str, int)

TOLD = (
    "modelspec.title",
    "modelspec.architecture",
    "modelspec.author",
    "modelspec.prediction_type",
    "ss_output_name",
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
    "ss_learning_rate",
    "ss_optimizer",
    "ss_resolution",
    "ss_num_train_images",
    "ss_steps",
    "ss_max_train_steps",
    "ss_v2",
    "urushi.lineage",
)
"""What people look for in a LoRA's metadata; the rest is long: tag counts, buckets, options."""


@dataclass(frozen=True)
class LoraInfo:
    """A LoRA file at a glance. Counts are of modules."""

    path: Path
    size: int
    """Bytes."""
    blake3: str
    family: Family | None
    """None where neither names nor sizes say it."""
    writer: str
    """Whose layout: kohya, diffusers or peft."""
    forms: Mapping[str, int]
    """lora, loha, …: how the deltas are held."""
    networks: Mapping[str, int]
    """unet, te1, te2, or ? where the name is not of a known layer."""
    kinds: Mapping[str, int]
    """linear, 1x1, 3x3, …: a matrix, or a convolution by its kernel."""
    ranks: Mapping[int, int]
    alphas: Mapping[float, int]
    """Of modules of two factors; a missing alpha is the rank."""
    dtypes: Mapping[str, int]
    """Of tensors, alphas apart."""
    norms: Mapping[str, float]
    """Network → ‖its deltas at strength 1‖_F, over modules of two factors."""
    largest: tuple[tuple[str, float], ...]
    """The modules with the largest rms of their delta, and that rms."""
    metadata: Mapping[str, str]
    """What of TOLD the file has."""


def info(lora: Path, *, largest: int = 5, identities: Mapping[Path, str] | None = None) -> LoraInfo:
    """Reads and describes a LoRA file, one module at a time.

    Raises:
        MergeError: not a LoRA, NaN in it, a form that is not known.
    """
    with exact_products(), open_loras([lora]) as (file,):
        modules = list(file.modules.values())
        squares: dict[str, float] = defaultdict(float)
        alphas: Counter[float] = Counter()
        sizes: list[tuple[str, float]] = []
        for module in modules:
            if not file.is_thin(module):
                continue
            factors = file.thin(module)
            norm = norm_of_factors(factors.up, factors.down, factors.scale)
            squares[_network(module)] += norm**2
            alphas[_alpha(factors.scale, factors.down.shape[0])] += 1
            sizes.append((module.name, norm / math.sqrt(math.prod(module.shape))))
        sizes.sort(key=lambda pair: -pair[1])
        return LoraInfo(
            path=lora,
            size=_size(lora),
            blake3=identity(lora, identities),
            family=family_of(file),
            writer=file.writer,
            forms=_counted(module.form for module in modules),
            networks=_counted(_network(module) for module in modules),
            kinds=_counted(_kind(module) for module in modules),
            ranks=_counted(module.rank for module in modules if module.rank is not None),
            alphas=dict(sorted(alphas.items())),
            dtypes=_counted(_dtypes(file)),
            norms={name: math.sqrt(square) for name, square in squares.items()},
            largest=tuple(sizes[:largest]),
            metadata={key: file.metadata[key] for key in TOLD if key in file.metadata},
        )


def _counted(found: Iterable[T]) -> dict[T, int]:
    """The most frequent first."""
    return dict(Counter(found).most_common())


def _size(lora: Path) -> int:
    """Bytes of the file, or of a folder's files."""
    if not lora.is_dir():
        return lora.stat().st_size
    return sum(path.stat().st_size for path in lora.iterdir() if path.is_file())


def _network(module: Module) -> str:
    layer = dotted(module.name)
    return "?" if layer is None else layer.partition(".")[0]


def _kind(module: Module) -> str:
    height, width = module.shape[2:]
    wide = any(len(entry.shape) > 2 for entry in module.entries.values())
    return f"{height}x{width}" if wide else "linear"


def _alpha(scale: float, rank: int) -> float:
    """What scale = alpha / rank was made of: the division is undone but for its rounding."""
    return float(f"{scale * rank:.9g}")


def _dtypes(file: LoraFile) -> Iterable[str]:
    for module in file.modules.values():
        for part, entry in module.entries.items():
            if part != "alpha":
                yield entry.dtype
