"""Checkpoints, LoRAs, strengths, prompts and seeds into the columns and rows of one grid.

Every combination is one picture. One axis lies along the columns, the others down the rows; without
a choice the models stand side by side over prompts and seeds.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from pipeline.recipe.preview import Preview

Axis = Literal["checkpoint", "lora", "strength", "prompt", "seed"]
AXES: tuple[Axis, ...] = get_args(Axis)
MODELS: tuple[Axis, ...] = ("checkpoint", "lora", "strength")


@dataclass(frozen=True)
class Variant:
    """One model to draw with."""

    checkpoint: Path
    lora: Path | None = None
    strength: float = 0.0
    """Of the LoRA; at 0 there is none."""


@dataclass(frozen=True)
class Cell:
    """One picture of the grid."""

    variant: Variant
    shot: int
    """Which of `shots(preview)`."""


@dataclass(frozen=True)
class Arrangement:
    """The grid. `cells` are by column, then by row."""

    columns: tuple[str, ...]
    """Headings; lines after the first say less."""
    rows: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The models that are drawn with, each once, in order of appearance."""
        return tuple(dict.fromkeys(cell.variant for column in self.cells for cell in column))


def arrange(
    checkpoints: Sequence[Path],
    loras: Sequence[Path],
    strengths: Sequence[float],
    preview: "Preview",
    x: Axis | None = None,
    y: Axis | None = None,
) -> Arrangement:
    """Every checkpoint with every LoRA at every strength, for every prompt and seed.

    Args:
        strengths: of the LoRAs; not looked at where there is none.
        x: along the columns; None: the models, whatever tells them apart.
        y: what changes from row to row; the other axes change less often.
    """
    words: dict[Axis, list[str]] = {
        "checkpoint": names(checkpoints),
        "lora": names(loras) or [""],
        "strength": [f"strength {strength:g}" for strength in strengths] if loras else [""],
        "prompt": list(preview.prompts),
        "seed": [f"seed {preview.seed + turn}" for turn in range(preview.seeds)],
    }
    across = MODELS if x is None else (x,)
    down = [axis for axis in AXES if axis not in across and axis != y]
    if y is not None and y not in across:
        down.append(y)

    def cell(place: dict[Axis, int]) -> Cell:
        variant = Variant(checkpoints[place["checkpoint"]])
        if loras and strengths[place["strength"]] != 0:
            lora, strength = loras[place["lora"]], strengths[place["strength"]]
            variant = Variant(variant.checkpoint, lora, strength)
        return Cell(variant, place["prompt"] * preview.seeds + place["seed"])

    columns, rows = _places(across, words), _places(down, words)
    return Arrangement(
        tuple(_label(place, words) for place in columns),
        tuple(_label(place, words) for place in rows),
        tuple(tuple(cell(column | row) for row in rows) for column in columns),
    )


def _places(axes: Sequence[Axis], words: dict[Axis, list[str]]) -> list[dict[Axis, int]]:
    ranges = [range(len(words[axis])) for axis in axes]
    return [dict(zip(axes, numbers, strict=True)) for numbers in product(*ranges)]


def _label(place: dict[Axis, int], words: dict[Axis, list[str]]) -> str:
    """What tells a column or row from its neighbours; its first axis where nothing does."""
    told = [words[axis][number] for axis, number in place.items() if len(words[axis]) > 1]
    shown = told or [words[axis][number] for axis, number in place.items()]
    return "\n".join(text for text in shown if text)


def names(paths: Sequence[Path]) -> list[str]:
    """File names without their ends, with the folder before them where two would be the same."""
    stems = [path.stem if path.suffix == ".safetensors" else path.name for path in paths]
    often = Counter(stems)
    return [
        f"{path.absolute().parent.name}/{stem}" if often[stem] > 1 else stem
        for path, stem in zip(paths, stems, strict=True)
    ]
