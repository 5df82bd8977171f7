"""Texts that name blocks of the UNet, as [lora] has them: which are trained, how fast, how large.

    IN04-07, OUT03-06          these, and no others
    IN04-07, OUT03-06 = 0.5    these, the second lot at half the rate
    M00 = 0, rest = 1          all but one
    MIDD                       a preset of the LoRA Block Weight extension
    0,0,0,0,0,1,…              a number for each block: 25 for SD 1.5, 19 for SDXL

What block weights of merges are written in (merge/blocks.py), with names that need no number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from merge.blocks import BASE, BLOCKS, PRESET_NAMES, parse_factors
from merge.errors import MergeError

Family = Literal["sd15", "sdxl"]
ORDERS = {len(blocks): blocks for blocks in BLOCKS.values()}
"""The lists that are allowed: all blocks of a family's UNet, without the text encoders'."""
NAMES: Mapping[Family, str] = {"sd15": "SD 1.5", "sdxl": "SDXL"}


@dataclass(frozen=True)
class Blocks:
    """A number for each block."""

    named: Mapping[str, float]
    rest: float
    """Of all others."""
    family: Family | None
    """Whose blocks they are, where the text counts them."""

    def of(self, block: str) -> float:
        """The number of `block`, such as "IN04"."""
        return self.named.get(block, self.rest)

    def require_fit(self, there: frozenset[str], family: Family) -> None:
        """Raises ValueError where a block is named, or counted, that the UNet does not have.

        Args:
            there: the blocks that it has.
        """
        if self.family not in (None, family):
            raise ValueError(
                f"counts the blocks of {NAMES[self.family]}, and the base is {NAMES[family]}: "
                f"give {len(BLOCKS[family])} numbers, or names such as IN04-07"
            )
        missing = sorted(set(self.named) - there) if self.family is None else []
        if missing:
            inside = [block for block in BLOCKS["sd15"] if block in there]
            raise ValueError(
                f"names {', '.join(missing)}, which the base's UNet does not have. It has "
                f"{inside[0]} to {inside[-1]}: {', '.join(inside)}"
            )


def parse_blocks(
    text: str, rest: float, family: Family | None = None, *, alone: bool = True
) -> Blocks:
    """What `text` says of each block.

    Args:
        rest: of blocks that it does not name, where it does not say it.
        family: of the base, where it is known; presets differ between the two.
        alone: whether a name without a number means 1.

    Raises:
        ValueError: an unknown name, a list of another count, a number below 0.
    """
    try:
        factors = parse_factors(_spelled_out(text) if alone else text, family, ORDERS)
    except MergeError as error:
        raise ValueError(str(error).rstrip(".")) from None
    named = dict(factors.named)
    if BASE in named and factors.family is None:
        raise ValueError(f"names {BASE}: text encoders are no blocks of the UNet")
    named.pop(BASE, None)
    if any(number < 0 for number in (*named.values(), factors.rest or 0)):
        raise ValueError("has a number below 0")
    return Blocks(named, rest if factors.rest is None else factors.rest, factors.family)


def _spelled_out(text: str) -> str:
    """With "=1" after names that stand alone."""
    parts = [part.strip() for part in text.split(",")]
    names = [part for part in parts if part[:1].isalpha() and part.upper() not in PRESET_NAMES]
    if not names or text.strip().upper() in ("ALL", "ALL0.5", "NONE"):
        return text
    return ",".join(part if "=" in part or part not in names else f"{part}=1" for part in parts)
