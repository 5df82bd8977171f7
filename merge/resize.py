"""Lowers the ranks of a LoRA: the best approximation of each delta, found from its thin factors.

    urushi lora resize LORA --rank 16 --out FILE

Per module a QR of either factor and the SVD of a matrix (r, r), in float64; the product, a hundred
times larger, is never made. The factors written hold the whole delta: alpha = rank, scale 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from merge.arithmetic import dtype_named, exact_products
from merge.identity import identity
from merge.lineage import ARCHITECTURES
from merge.lora import LoraFile, Module, open_loras
from merge.lora_layout import Layout, renamed
from merge.lora_metadata import family_of, said, source
from merge.pairs import Pairs, pairs
from merge.thin import Cut, of_factors, total_share


@dataclass(frozen=True)
class ThinLayer:
    """What became of one module."""

    name: str
    """As the output spells it."""
    before: int
    """The rank that it had."""
    rank: int
    norm: float
    """‖delta‖_F before."""
    share: float
    """‖delta kept‖_F / ‖delta‖_F, in [0, 1]."""


@dataclass(frozen=True)
class ResizeReport:
    """What a resize did, module by module in the file's order."""

    out: Path
    lora: str
    """BLAKE3 of the input."""
    layers: tuple[ThinLayer, ...]
    share: float
    """‖all that is kept‖_F / ‖all‖_F."""
    size: int
    """Bytes of the output."""


def resize(
    lora: Path,
    out: Path,
    cut: Cut,
    *,
    conv_rank: int | None = None,
    dtype: str | None = None,
    metadata: Mapping[str, str] | None = None,
    on_module: Callable[[int, int], None] | None = None,
    identities: Mapping[Path, str] | None = None,
) -> ResizeReport:
    """Writes the LoRA of the ranks that `cut` allows which is nearest to `lora`, layer by layer.

    No rank grows. kohya's files stay kohya's, names included; others are written in diffusers'
    layout. The same input gives the same bytes.

    Args:
        cut: what to keep of every layer.
        conv_rank: the most for convolutions with a kernel larger than 1 × 1, in the place of the
            cut's rank.
        dtype: "float16", "bfloat16" or "float32"; None keeps each module's own.
        metadata: added to the output's, over what is there.
        on_module: called with (modules done, modules in all).
        identities: BLAKE3 hashes that the caller remembers, by path.

    Raises:
        MergeError: not a LoRA, another form than two factors, no room (3), no permission (2).
    """
    target = dtype_named(dtype)
    spatial = cut if conv_rank is None else replace(cut, rank=conv_rank)
    with exact_products(), open_loras([lora]) as (file,):
        layout: Layout = "kohya" if file.writer == "kohya" else "diffusers"
        family = family_of(file)
        names = {name: name for name in file.modules}
        if layout == "diffusers":
            names = renamed(file.modules, layout, family)
        for module in file.modules.values():
            file.refuse_unless_thin(module)
        layers: list[ThinLayer] = []
        energies: list[float] = []
        with pairs(out, layout, [lora]) as written:
            for module in file.modules.values():
                chosen = spatial if module.shape[2:] != (1, 1) else cut
                row, energy = _resize(file, module, names[module.name], chosen, target, written)
                layers.append(row)
                energies.append(energy)
                if on_module is not None:
                    on_module(len(layers), len(file.modules))
            blake3 = identity(lora, identities)
            size = written.write(
                file.metadata,
                {"lora": source(blake3, file.metadata), "resized": said(cut, conv_rank)},
                None if family is None else f"{ARCHITECTURES[family]}/lora",
                metadata or {},
            )
    shares = [(row.share, energy) for row, energy in zip(layers, energies, strict=True)]
    return ResizeReport(out, blake3, tuple(layers), total_share(shares), size)


def _resize(
    file: LoraFile, module: Module, name: str, cut: Cut, dtype: str | None, written: Pairs
) -> tuple[ThinLayer, float]:
    factors = file.thin(module)
    spectrum = of_factors(factors.up, factors.down, factors.scale)
    count = cut.count(spectrum.values, spectrum.energy)
    up, down = spectrum.factors(count)
    stored = module.entries["down"]
    written.add(name, up, down, float(count), stored.shape[1:], dtype or stored.dtype)
    row = ThinLayer(
        name=name,
        before=factors.down.shape[0],
        rank=count,
        norm=spectrum.energy**0.5,
        share=spectrum.share(count),
    )
    return row, spectrum.energy
