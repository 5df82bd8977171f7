"""What is to be mixed, as records: models by name, steps that combine them, amounts by part.

No tensors and no files here; merge/mix_toml.py reads a recipe from TOML into these.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from merge.blocks import BASE, BLOCKS, PRESET_NAMES, parse_factors
from merge.errors import MergeError
from merge.layers import Network

Apart = Network | Literal["vae"]
"""What a mix treats apart: the UNet (by block), each text encoder, the VAE."""

ORDERS = {
    19: BLOCKS["sdxl"],
    20: (BASE, *BLOCKS["sdxl"]),
    25: BLOCKS["sd15"],
    26: (BASE, *BLOCKS["sd15"]),
}
"""Which blocks a list of so many numbers means: all of them, in the order of the data's flow."""


@dataclass(frozen=True)
class Amount:
    """A factor for every part of a model: a step's alpha, or one model's weight."""

    unet: float | None
    """Of the UNet's blocks that are not named; None where a list names all that there may be."""
    te1: float
    te2: float
    vae: float
    blocks: Mapping[str, float] = field(default_factory=dict)
    """Of UNet blocks: IN00-IN11, M00, OUT00-OUT11."""

    def at(self, network: Apart, block: str) -> float:
        """The factor for a tensor of `network`; `block` tells only for the UNet.

        Raises:
            MergeError: the block has no number.
        """
        if network != "unet":
            return {"te1": self.te1, "te2": self.te2, "vae": self.vae}[network]
        found = self.blocks.get(block, self.unet)
        if found is None:
            raise MergeError(
                f"The model has a block {block}, for which {len(self.blocks)} block numbers leave "
                "none. 25 or 26 are for SD 1.5, 19 or 20 for SDXL."
            )
        return found

    def rest(self) -> "Amount":
        """1 − self, part by part: what is left for the first of two models."""
        return Amount(
            None if self.unet is None else 1.0 - self.unet,
            1.0 - self.te1,
            1.0 - self.te2,
            1.0 - self.vae,
            {block: 1.0 - value for block, value in self.blocks.items()},
        )

    def described(self) -> float | dict[str, Any]:
        """For lineage: one number where all parts agree."""
        parts: dict[str, Any] = {"te1": self.te1, "te2": self.te2, "vae": self.vae}
        if self.unet is not None:
            parts["unet"] = self.unet
        if not self.blocks and len(set(parts.values())) == 1:
            return self.te1
        return {**parts, "blocks": dict(self.blocks)} if self.blocks else parts


@dataclass(frozen=True)
class Step:
    """One combination of models and earlier steps."""

    name: str
    kind: Literal["sum", "difference"]
    inputs: tuple[str, ...]
    amounts: tuple[Amount, ...]
    """sum: the weight of each input. difference: one, the factor on second − third, which is added
    to the first."""


@dataclass(frozen=True)
class MixRecipe:
    """Models by name, steps in order; the last step is the result, `vae` names whose VAE it gets.

    Checked when it is made: every name is known where it is used, and everything named is used.
    """

    models: Mapping[str, Path]
    steps: tuple[Step, ...]
    vae: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if not self.steps:
            raise MergeError("The recipe has no step. Add a [[step]] with a sum or a difference.")
        known = set(self.models)
        used: set[str] = set() if self.vae is None else {self.vae}
        for step in self.steps:
            for name in step.inputs:
                if name not in known:
                    raise MergeError(
                        f"Step {step.name!r} names {name!r}, which is no model and no earlier step"
                        f"{meant(name, known)}."
                    )
            if step.name in known:
                raise MergeError(f"Two things are called {step.name!r}. Rename one of them.")
            known.add(step.name)
            used.update(step.inputs)
        if self.vae is not None and self.vae not in self.models:
            raise MergeError(
                f"vae names {self.vae!r}, which is no model{meant(self.vae, self.models)}."
            )
        idle = sorted(known - used - {self.steps[-1].name})
        if idle:
            raise MergeError(
                f"Nothing uses {', '.join(idle)}: the last step, {self.steps[-1].name!r}, is what "
                "is written. Use it in a step or take it out."
            )

    @property
    def leading(self) -> str:
        """The model that gives what is not mixed: keys, dtypes, metadata, markers, other tensors.

        It is the first input of the last step, and of that step, and so on.
        """
        firsts = {step.name: step.inputs[0] for step in self.steps}
        name = self.steps[-1].name
        while name in firsts:
            name = firsts[name]
        return name

    def described(self) -> list[dict[str, Any]]:
        """The steps, for lineage."""
        return [
            {"name": step.name, step.kind: list(step.inputs), **_numbers(step)}
            for step in self.steps
        ]


def _numbers(step: Step) -> dict[str, Any]:
    amounts = [amount.described() for amount in step.amounts]
    return {"alpha": amounts[0]} if step.kind == "difference" else {"weights": amounts}


def weighted(name: str, inputs: Sequence[str], weights: Sequence[float]) -> Step:
    """Σ weight · input, the same everywhere.

    Raises:
        MergeError: counts differ, a weight is not finite.
    """
    if len(inputs) != len(weights) or len(inputs) < 2:
        raise MergeError(
            f"A sum needs two models or more and a weight for each: {len(inputs)} models and "
            f"{len(weights)} weights in {name!r}."
        )
    return Step(name, "sum", tuple(inputs), tuple(amount(weight) for weight in weights))


def sum_of_two(name: str, first: str, second: str, alpha: Amount) -> Step:
    """first · (1 − alpha) + second · alpha."""
    return Step(name, "sum", (first, second), (alpha.rest(), alpha))


def difference(name: str, first: str, second: str, third: str, alpha: Amount) -> Step:
    """first + alpha · (second − third)."""
    return Step(name, "difference", (first, second, third), (alpha,))


def amount(
    alpha: float | None = None,
    blocks: str | None = None,
    *,
    te: float | None = None,
    te1: float | None = None,
    te2: float | None = None,
    vae: float | None = None,
) -> Amount:
    """`alpha` everywhere, but where something more particular is said.

    blocks: "IN04-07=0.3,OUT03=1,BASE=0,rest=0.5" (`rest` stands for alpha), or numbers: 25
    (IN00-11, M00, OUT00-11) or 26 (BASE before them), for SDXL 19 or 20 (IN00-08, M00, OUT00-08).
    BASE is the text encoders and the VAE; te, te1, te2 and vae speak for those alone.

    Raises:
        MergeError: an unknown block, a number that is not finite, or none for some part.
    """
    for number in (alpha, te, te1, te2, vae):
        if number is not None and not math.isfinite(number):
            raise MergeError(f"{number} is not a finite number. Use a number such as 0.3.")
    named: dict[str, float] = {}
    # A list counts its model's blocks one for one: alpha must fill no gap in it.
    listed = False
    if blocks is not None:
        if blocks.strip().upper() in PRESET_NAMES:
            raise MergeError(
                f"{blocks!r} is a preset for LoRAs; a mix takes 19, 20, 25 or 26 numbers, or names "
                "such as IN04-07=0.3,rest=0.5."
            )
        factors = parse_factors(blocks, orders=ORDERS)
        named = dict(factors.named)
        listed = factors.family is not None
        # A list's own rest is for LoRAs, which need not reach all that it does not count.
        alpha = alpha if listed or factors.rest is None else factors.rest
    base = named.pop(BASE, alpha)
    ours = {"te1": _first(te1, te, base), "te2": _first(te2, te, base), "vae": _first(vae, base)}
    parts = {part: number for part, number in ours.items() if number is not None}
    lacking = [part for part in ours if part not in parts]
    if alpha is None and not listed:
        lacking.append("the UNet's other blocks")
    if lacking:
        raise MergeError(
            f"There is no alpha for {', '.join(lacking)}. Give alpha, or BASE and rest in blocks."
        )
    return Amount(None if listed else alpha, **parts, blocks=named)


def _first(*numbers: float | None) -> float | None:
    return next((number for number in numbers if number is not None), None)


def meant(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'photo'?)` if something known is spelled like it, else nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
