"""A factor on a LoRA's delta: one number, or apart for each network and block.

0.8                             everywhere
unet=0.8,te=0.5                 apart for the UNet and the text encoders (te1, te2 singly)
OUTALL                          a preset, or a list, of block weights: merge/blocks.py
te=0.5,IN04-07=0.3              networks and blocks together; what is not named keeps 1
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge.blocks import BASE, BLOCKS, FAMILIES, ORDERS, finite, pairs, parse_factors
from merge.errors import MergeError
from merge.families import NAMES
from merge.layers import Base, Family, Layer
from merge.spelling import dotted

NETWORKS: Mapping[str, tuple[str, ...]] = {
    "unet": ("unet",),
    "te1": ("te1",),
    "te2": ("te2",),
    "te": ("te1", "te2"),
}
"""Names in a strength's text, and the networks that they mean."""


@dataclass(frozen=True)
class Strength:
    """unet, te1, te2: factors of the networks. blocks: a further factor for each block named.

    Raises:
        MergeError: when made with a block that does not exist, or a number that is not finite.
    """

    unet: float = 1.0
    te1: float = 1.0
    te2: float = 1.0
    blocks: Mapping[str, float] = field(default_factory=dict)
    rest: float = 1.0
    """The further factor of blocks that are not named."""
    family: Family | None = None
    """Whose blocks they are, where they were counted and not named; None fits any base."""

    def __post_init__(self) -> None:
        known = (BASE, *BLOCKS["sd15"])
        unknown = [block for block in self.blocks if block not in known]
        if unknown:
            raise MergeError(
                f"There is no block {', '.join(unknown)}. There are BASE, IN00 to IN11, M00 and "
                "OUT00 to OUT11."
            )
        numbers = (self.unet, self.te1, self.te2, self.rest, *self.blocks.values())
        if not all(math.isfinite(number) for number in numbers):
            raise MergeError(f"A strength has a number that is not finite: {self.described()}.")

    def of(self, layer: Layer) -> float:
        """The factor on the delta of `layer`."""
        network = {"unet": self.unet, "te1": self.te1, "te2": self.te2}[layer.network]
        return network * self.blocks.get(layer.block, self.rest)

    def on(self, name: str) -> float:
        """The factor on a LoRA's module of this name, in any spelling.

        Raises:
            MergeError: it differs by blocks, which a name alone does not tell.
        """
        if self.blocks or self.rest != 1.0:
            raise MergeError("Block weights have no one factor for a module known by name alone.")
        network = (dotted(name) or name).partition(".")[0]
        return {"te1": self.te1, "te2": self.te2}.get(network, self.unet)

    def times(self, factor: "float | Strength") -> "Strength":
        """Both together: the product on every layer.

        Raises:
            MergeError: one counts SD 1.5's blocks and the other SDXL's.
        """
        if not isinstance(factor, Strength):
            factor = Strength(factor, factor, factor)
        if None not in (self.family, factor.family) and self.family != factor.family:
            raise MergeError("One block weight counts the blocks of SD 1.5, the other SDXL's.")
        named = dict.fromkeys((*self.blocks, *factor.blocks))
        return Strength(
            unet=self.unet * factor.unet,
            te1=self.te1 * factor.te1,
            te2=self.te2 * factor.te2,
            blocks={
                block: self.blocks.get(block, self.rest) * factor.blocks.get(block, factor.rest)
                for block in named
            },
            rest=self.rest * factor.rest,
            family=self.family or factor.family,
        )

    def described(self) -> dict[str, Any]:
        """For lineage and reports: plain JSON, exact, and the same for the same strength."""
        networks = {"unet": self.unet, "te1": self.te1, "te2": self.te2}
        if not self.blocks and self.rest == 1.0:
            return networks
        return {**networks, "blocks": dict(sorted(self.blocks.items())), "rest": self.rest}


def parse_strength(text: str, family: Family | None = None) -> float | Strength:
    """A strength as people write it; see the head of this file.

    Args:
        family: of the base, if it is known. Presets differ between the families: without it they
            mean SD 1.5's, and a merge into SDXL refuses them.

    Raises:
        MergeError: an unknown name, a list of another count, a number that is none.
    """
    text = text.strip()
    if "=" in text:
        return _of_names(text)
    if "," not in text and text[:1] in tuple("0123456789.+-"):
        return finite(text, text)
    if text.lower() in ("nan", "inf", "infinity"):
        raise MergeError(f"The strength {text!r} is not a finite number.")
    return _of_blocks(text, family)


def _of_blocks(text: str, family: Family | None) -> Strength:
    factors = parse_factors(text, family)
    rest = 1.0 if factors.rest is None else factors.rest
    return Strength(blocks=factors.named, rest=rest, family=factors.family)


def _of_names(text: str) -> Strength:
    networks: dict[str, float] = {}
    blocks: list[str] = []
    for name, value in pairs(text):
        if name.lower() not in NETWORKS:
            blocks.append(f"{name}={value}")
            continue
        for network in NETWORKS[name.lower()]:
            if network in networks:
                raise MergeError(f"{network} is given twice in {text!r}. Give it one number.")
            networks[network] = finite(value, text)
    unet, te1, te2 = (networks.get(network, 1.0) for network in ("unet", "te1", "te2"))
    strength = Strength(unet, te1, te2)
    return strength.times(_of_blocks(",".join(blocks), None)) if blocks else strength


def strength_at(strength: float | Strength, layer: Layer) -> float:
    """The factor of an addend's strength on the delta of `layer`."""
    return strength.of(layer) if isinstance(strength, Strength) else float(strength)


def described(strength: float | Strength) -> float | dict[str, Any]:
    """An addend's strength as plain JSON, exact."""
    return strength.described() if isinstance(strength, Strength) else float(strength)


def require_finite(path: Path, strength: float | Strength) -> None:
    """Refuses NaN and infinity. (A Strength has refused them when it was made.)

    Raises:
        MergeError: naming the LoRA.
    """
    if not isinstance(strength, Strength) and not math.isfinite(strength):
        raise MergeError(f"The strength of {path} is {strength}: not a number.")


def refuse_misfit(strength: float | Strength, base: Base) -> None:
    """Refuses block weights that mean other blocks than the base has.

    Raises:
        MergeError: a list or preset of the other family, or a name that the base has no block for.
    """
    if not isinstance(strength, Strength):
        return
    if strength.family is not None:
        if strength.family != base.family:
            counts = [str(count) for count in ORDERS if FAMILIES[count] == base.family]
            raise MergeError(
                f"These block weights count the blocks of {NAMES[strength.family]}, and "
                f"{base.path} is {NAMES[base.family]}: give {' or '.join(counts)} numbers, "
                "or names such as IN04-07=1."
            )
        return
    there = {layer.block for layer in base.layers.values()} | {BASE}
    missing = [block for block in strength.blocks if block not in there]
    if missing:
        inside = [block for block in BLOCKS["sd15"] if block in there]
        raise MergeError(
            f"{base.path} has no block {', '.join(missing)}. It has {', '.join(inside)}."
        )
