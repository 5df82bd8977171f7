"""How a LoRA file spells a module of two factors: kohya's way or diffusers', and its alpha.

    kohya       NAME.lora_down.weight  NAME.lora_up.weight  NAME.alpha
    diffusers   NAME.lora_A.weight     NAME.lora_B.weight   and one JSON text in the metadata

diffusers takes a missing alpha as the rank; others it keeps in `lora_adapter_metadata`, peft's
LoraConfig for each component. Strings only, no tensors.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from merge.errors import MergeError, listed
from merge.keys import TEXT_MODEL
from merge.layers import Family
from merge.spelling import dotted, kohya_names

Layout = Literal["kohya", "diffusers"]
LAYOUTS: tuple[Layout, ...] = ("kohya", "diffusers")

COMPONENTS = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
"""Network → diffusers' name of the pipeline's component."""

ADAPTER = "lora_adapter_metadata"


@dataclass(frozen=True)
class Suffixes:
    """What follows a module's name. alpha is empty where it is kept in the metadata."""

    down: str
    up: str
    alpha: str


SUFFIXES: Mapping[Layout, Suffixes] = {
    "kohya": Suffixes("lora_down.weight", "lora_up.weight", "alpha"),
    "diffusers": Suffixes("lora_A.weight", "lora_B.weight", ""),
}


@dataclass(frozen=True)
class Ranked:
    """A module as written: its name in the file's spelling, rank and alpha."""

    name: str
    rank: int
    alpha: float


def renamed(names: Iterable[str], layout: Layout, family: Family | None) -> dict[str, str]:
    """Each name in any spelling → its name in `layout`. Only kohya's way needs the family.

    Raises:
        MergeError: names that are no layer of Stable Diffusion's; two names of one layer.
    """
    layers = {name: dotted(name) for name in names}
    strange = [name for name, layer in layers.items() if layer is None]
    if strange:
        raise MergeError(
            f"{listed(strange)} cannot be named in {layout}'s way: no such layer is known in "
            "Stable Diffusion 1.5 or SDXL."
        )
    found = {n: spelled(layer, layout, family) for n, layer in layers.items() if layer is not None}
    twice = [name for name, count in Counter(found.values()).items() if count > 1]
    if twice:
        raise MergeError(f"Two modules are the same layer: {listed(twice)}.")
    return found


def spelled(layer: str, layout: Layout, family: Family | None) -> str:
    """A layer's name (`Layer.name`) in `layout`: kohya's usual one, or diffusers'."""
    if layout == "kohya":
        if family is None:
            raise AssertionError("kohya's names depend on the family")
        return kohya_names(layer, family)[0]
    network, _, module = layer.partition(".")
    return f"{COMPONENTS[network]}.{module}"


def adapter_metadata(modules: Sequence[Ranked]) -> dict[str, str]:
    """What diffusers must be told of modules in its own layout, so that each gets its alpha."""
    told: dict[str, Any] = {}
    for component in COMPONENTS.values():
        # transformers from 5.6 on has no `text_model.`; without it both find their layer.
        inside = [
            Ranked(
                module.name.removeprefix(f"{component}.").removeprefix(TEXT_MODEL),
                module.rank,
                module.alpha,
            )
            for module in modules
            if module.name.startswith(f"{component}.")
        ]
        if inside:
            rank = _usual(module.rank for module in inside)
            alpha = _usual(module.alpha for module in inside)
            told |= {
                f"{component}.r": int(rank),
                f"{component}.lora_alpha": _number(alpha),
                f"{component}.rank_pattern": {m.name: m.rank for m in inside if m.rank != rank},
                f"{component}.alpha_pattern": {
                    m.name: _number(m.alpha) for m in inside if m.alpha != alpha
                },
                f"{component}.target_modules": sorted(module.name for module in inside),
            }
    return {"format": "pt", ADAPTER: json.dumps(told, sort_keys=True, separators=(",", ":"))}


def _usual(numbers: Iterable[float]) -> float:
    """The most frequent; the greatest of those."""
    counted = Counter(numbers)
    return max(counted, key=lambda number: (counted[number], number))


def _number(alpha: float) -> float | int:
    return int(alpha) if alpha.is_integer() else alpha
