"""What a round did to each layer, beside what all rounds together did: growth.json."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from merge import MergeReport, Strength
from merge.growth import growth, intruders
from pipeline.artefacts.ledger import GrowthFile, LayerRow

LOOKED_AT = 16
"""Layers whose leading directions are compared with the origin's: those of the largest deltas."""


def measure(
    origin: Path, chain: Sequence[tuple[int, Path, float | Strength]], report: MergeReport
) -> GrowthFile:
    """Of a chain of (round, LoRA, strength) and the report of its merge, which has the norms of the
    origin's weights."""
    loras = [(path, strength) for _, path, strength in chain]
    grown = growth(loras)
    # delta_rms / relative is the weight's own rms, and total / delta_rms the root of its size.
    known = {row.module: row for row in report.matched if row.relative > 0}
    over = {
        layer.module: known[layer.module].relative / layer.total
        for layer in grown.layers
        if layer.module in known and layer.total > 0
    }
    largest = sorted(over, key=lambda name: (-known[name].relative, name))[:LOOKED_AT]
    found = intruders(origin, loras, largest)
    return GrowthFile(
        cosines={
            number: cosine for (number, _, _), cosine in zip(chain[:-1], grown.cosines, strict=True)
        },
        layers=tuple(
            LayerRow(
                module=layer.module,
                relative=layer.last * over.get(layer.module, 0.0),
                total=layer.total * over.get(layer.module, 0.0),
                effective_rank=layer.effective_rank,
                intruders=found.get(layer.module),
            )
            for layer in grown.layers
        ),
    )


def summed_up(grown: GrowthFile) -> dict[str, Any]:
    """For the receipt, and so for the ledger."""
    ranks = [layer.effective_rank for layer in grown.layers]
    return {
        "cosines": grown.cosines,
        "effective_rank": median(ranks) if ranks else 0.0,
        "intruders": sum(layer.intruders or 0 for layer in grown.layers),
    }
