"""One module of an adapter file as a record: its form, its size, and which layers it fits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from merge.adapter_config import Told
from merge.container import Entry

Form = Literal["lora", "tucker", "loha", "lokr", "diff", "norm", "bias"]

NAMES: Mapping[Form, str] = {
    "lora": "LoRA",
    "tucker": "a Tucker decomposition (lora_mid)",
    "loha": "LoHa",
    "lokr": "LoKr",
    "diff": "full differences",
    "norm": "a norm's differences",
    "bias": "full differences of a bias",
}
"""What a person calls a form."""

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Module:
    """One adapted layer of a LoRA file, checked for shape but not yet read."""

    name: str
    """As the file spells it, without what follows for the single tensors."""
    form: str
    """lora, tucker, loha, lokr, diff, norm or bias; `dora-` before it where it is decomposed."""
    shape: Shape
    """Of the weight's delta: (out, in, height, width), a norm's (n, 1, 1, 1); of a bias alone
    (n, 1, 1, 1). Where `flat`, (out, in · height · width, 1, 1)."""
    rank: int | None
    """None of a form that has none."""
    entries: Mapping[str, Entry]
    """By part: `down`, `up` and `alpha` of a plain LoRA, whoever wrote it."""
    has_weight: bool
    has_bias: bool
    flat: bool
    """A kernel is not known from the file: LoHa and LoKr may store it as columns."""
    told: Told
    """What is said of it beside its tensors."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it can be added to a layer of this shape, `Layer.shape`."""
        out, inner, height, width = canonical(shape)
        if not self.has_weight:
            return self.shape[0] == out
        if by_input(self) and math.prod(self.entries["dora_scale"].shape) != inner:
            return False
        if self.flat:
            return self.shape[:2] == (out, inner * height * width)
        return self.shape == (out, inner, height, width)


def canonical(shape: tuple[int, ...]) -> Shape:
    """(out, in) and (out, in, 1, 1) are one layer to a LoRA: both as (out, in, h, w). A norm's
    (n,) is (n, 1, 1, 1)."""
    out, inner, height, width = (*shape, *(1,) * (4 - len(shape)))
    return out, inner, height, width


def by_input(module: Module) -> bool:
    """Whether it is a DoRA of one magnitude for each input: dora_scale is (1, in[, 1, 1])."""
    scale = module.entries.get("dora_scale")
    return scale is not None and len(scale.shape) > 1 and scale.shape[:2] != (module.shape[0], 1)
