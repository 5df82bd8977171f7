"""The blocks of a UNet as people count them, and texts that give each a factor.

    1,0,0,0,1,1,1,0,…          12, 17, 20 or 26 numbers: a list of the LoRA Block Weight extension
    OUTALL                     one of its presets
    IN04-07=1,OUT03-06=0.5     names; `rest=` says what the others get

Orders and presets: github.com/hako-mikan/sd-webui-lora-block-weight. Pure: texts in, numbers out.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merge.errors import MergeError
from merge.layers import Family

BASE = "BASE"
"""What is not UNet: the text encoders."""


def _blocks(last: int) -> tuple[str, ...]:
    numbers = range(last + 1)
    return (*(f"IN{n:02d}" for n in numbers), "M00", *(f"OUT{n:02d}" for n in numbers))


BLOCKS: Mapping[Family, tuple[str, ...]] = {"sd15": _blocks(11), "sdxl": _blocks(8)}
"""All blocks of each family's UNet, in order."""

ORDERS: Mapping[int, tuple[str, ...]] = {
    12: (
        *(BASE, "IN04", "IN05", "IN07", "IN08", "M00"),
        *("OUT00", "OUT01", "OUT02", "OUT03", "OUT04", "OUT05"),
    ),
    17: (
        *(BASE, "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00"),
        *("OUT03", "OUT04", "OUT05", "OUT06", "OUT07", "OUT08", "OUT09", "OUT10", "OUT11"),
    ),
    20: (BASE, *BLOCKS["sdxl"]),
    26: (BASE, *BLOCKS["sd15"]),
}
"""Which blocks a list of so many numbers means. 12 and 17 are the blocks with attention, all that a
LoRA without convolutions reaches; 20 and 26 are all blocks."""

FAMILIES: Mapping[int, Family] = {
    12: "sdxl",
    17: "sd15",
    19: "sdxl",
    20: "sdxl",
    25: "sd15",
    26: "sd15",
}
"""Whose blocks a list of so many numbers counts; 19 and 25 are all blocks without BASE."""

PRESETS: Mapping[Family, Mapping[str, str]] = {
    "sd15": {
        "INS": "11110000000000000",
        "IND": "10001110000000000",
        "INALL": "11111110000000000",
        "MIDD": "10001111111100000",
        "OUTD": "10000000111100000",
        "OUTS": "10000000000011111",
        "OUTALL": "10000000111111111",
        # These two are not the extension's own, but lists that its users pass on.
        "NIN": "10000000111111111",
        "NCNF": "11111111111111" + "011000111100",
    },
    # The extension has presets of 17 numbers only, which are wrong on SDXL. These are its 12
    # blocks, split into shallow and deep as the 17 are (civitai.com/articles/2322).
    "sdxl": {
        "INS": "111000000000",
        "IND": "100110000000",
        "INALL": "111110000000",
        "MIDD": "100111111000",
        "OUTD": "100000111000",
        "OUTS": "100000000111",
        "OUTALL": "100000111111",
        "NIN": "100000111111",
    },
}
"""One digit for each number of a list. ALL, ALL0.5 and NONE need no list."""

EVERYWHERE: Mapping[str, float] = {"ALL": 1.0, "ALL0.5": 0.5, "NONE": 0.0}
"""Presets of one number for every block, also those that a short list does not count."""

PRESET_NAMES = (*EVERYWHERE, *PRESETS["sd15"])

REST = "rest"

_BLOCK = re.compile(r"(IN|OUT)(\d{1,2})(?:-(IN|OUT)?(\d{1,2}))?|(M00|MID)|(BASE)", re.IGNORECASE)

ALLOWED = "BASE, IN00-11, M00, OUT00-11 and rest"


@dataclass(frozen=True)
class Factors:
    """A factor for each block named, and perhaps one for all others."""

    named: Mapping[str, float]
    rest: float | None
    """None where the text names blocks and does not say it."""
    family: Family | None
    """Whose blocks they are, where the text counts blocks and does not name them."""


def parse_factors(
    text: str, family: Family | None = None, orders: Mapping[int, tuple[str, ...]] = ORDERS
) -> Factors:
    """What `text` says of each block: a list, a preset, or names.

    A list gives 0 to blocks that it does not count, as the extension does.

    Args:
        family: of the base, if it is known: which of the two forms of a preset is meant.
        orders: the lists that are allowed, by their count.

    Raises:
        MergeError: an unknown name, a list of another count, a number that is none.
    """
    text = text.strip()
    if "=" in text:
        return _of_names(text)
    name = text.upper()
    if name in EVERYWHERE:
        return Factors({}, EVERYWHERE[name], None)
    if name in PRESETS["sd15"]:
        return _of_preset(name, family or "sd15")
    numbers = [finite(part, text) for part in text.split(",")] if _is_list(text) else []
    if len(numbers) in orders:
        counted = len(numbers)
        named = dict(zip(orders[counted], numbers, strict=True))
        return Factors(named, 0.0, FAMILIES.get(counted))
    if numbers:
        counts = ", ".join(map(str, orders))
        raise MergeError(
            f"{text!r} has {len(numbers)} numbers; block weights are lists of {counts} "
            "(BASE first), or names such as IN04-07=1,OUT03-06=0.5."
        )
    raise MergeError(
        f"{text!r} is not a number and not a preset ({', '.join(PRESET_NAMES)}); "
        "block weights by name look like IN04-07=1,OUT03-06=0.5,rest=0."
    )


def _is_list(text: str) -> bool:
    return "," in text or text[:1] in "0123456789.+-"


def _of_preset(name: str, family: Family) -> Factors:
    digits = PRESETS[family].get(name)
    if digits is None:
        raise MergeError(
            f"The preset {name} is known for SD 1.5 only, and the base is SDXL. "
            "Give its 12 or 20 numbers."
        )
    order = ORDERS[len(digits)]
    return Factors(dict(zip(order, map(float, digits), strict=True)), 0.0, family)


def _of_names(text: str) -> Factors:
    named: dict[str, float] = {}
    rest: float | None = None
    for name, value in pairs(text):
        number = finite(value, text)
        if name.lower() == REST:
            if rest is not None:
                raise MergeError(f"{REST} is given twice in {text!r}. Once is enough.")
            rest = number
            continue
        for block in expanded(name):
            if block in named:
                raise MergeError(f"{block} is given twice in {text!r}. Give it one number.")
            named[block] = number
    return Factors(named, rest, None)


def pairs(text: str) -> list[tuple[str, str]]:
    """("IN04-07", "1") and so on of "IN04-07=1,OUT03=0.5".

    Raises:
        MergeError: a part is not NAME=NUMBER.
    """
    found = []
    for part in text.split(","):
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if not (name and sign and value):
            raise MergeError(
                f"{part.strip()!r} in {text!r} is not NAME=NUMBER, as in IN04-07=1,OUT03-06=0.5."
            )
        found.append((name, value))
    return found


def expanded(name: str) -> Sequence[str]:
    """The blocks that "IN04-07", "OUT3", "M00" or "BASE" means.

    Raises:
        MergeError: there are no such blocks.
    """
    match = _BLOCK.fullmatch(name)
    if match is None:
        raise MergeError(f"{name!r} is not a block. There are {ALLOWED}.")
    side, first, other, last, middle, base = match.groups()
    if base:
        return (BASE,)
    if middle:
        return ("M00",)
    start, end = int(first), int(last if last is not None else first)
    blocks = [f"{side.upper()}{number:02d}" for number in range(start, end + 1)]
    crosses = other is not None and other.upper() != side.upper()
    if crosses or not blocks or blocks[-1] not in BLOCKS["sd15"]:
        raise MergeError(f"{name!r} is not a range of blocks. There are {ALLOWED}.")
    return blocks


def finite(text: str, whole: str) -> float:
    """`text` as a number; `whole` is the argument that it is a part of.

    Raises:
        MergeError: it is none, or not finite.
    """
    try:
        number = float(text)
    except ValueError:
        raise MergeError(f"{text.strip()!r} in {whole!r} is not a number.") from None
    if not math.isfinite(number):
        raise MergeError(f"{text.strip()!r} in {whole!r} is not a finite number.")
    return number
