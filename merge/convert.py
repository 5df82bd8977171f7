"""Respells a LoRA: kohya's layout into diffusers', and back. The factors' bytes stay as they are.

    urushi lora convert LORA --to diffusers --out FILE

Alphas move between tensors and metadata (merge/lora_layout.py), so nothing is lost either way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from merge.container import Entry
from merge.errors import MergeError
from merge.identity import identity
from merge.layers import Family
from merge.lineage import ARCHITECTURES
from merge.lora import LoraFile, open_loras
from merge.lora_layout import LAYOUTS, Layout, renamed
from merge.lora_metadata import family_of, source
from merge.pairs import pairs


@dataclass(frozen=True)
class ConvertReport:
    """What was written."""

    out: Path
    lora: str
    """BLAKE3 of the input."""
    family: Family
    names: Mapping[str, str]
    """Each module's name in the input → its name in the output."""
    size: int
    """Bytes of the output."""


def convert(
    lora: Path,
    out: Path,
    to: Layout,
    *,
    family: Family | None = None,
    metadata: Mapping[str, str] | None = None,
    identities: Mapping[Path, str] | None = None,
) -> ConvertReport:
    """Writes `lora` (kohya's, diffusers' or PEFT's) in the layout `to`, every factor byte for byte.

    kohya's SD 1.5 files take diffusers' block names and its SDXL files sgm's, as kohya has it.

    Args:
        family: "sd15" or "sdxl", where the names do not say it.
        metadata: added to the output's, over what is there.
        identities: BLAKE3 hashes that the caller remembers, by path.

    Raises:
        MergeError: a form that only one layout has (DoRA, LoHa, …), a layer unknown to the other
            layout, a family that must be said, no room (3), no permission (2).
    """
    if to not in LAYOUTS:
        raise MergeError(f"The layout {to!r} is not one of {', '.join(LAYOUTS)}.")
    with open_loras([lora]) as (file,):
        found = family_of(file) or family
        if found is None:
            raise MergeError(
                f"The names in {lora} do not say whether it is of SD 1.5 or SDXL: name the family."
            )
        for module in file.modules.values():
            file.refuse_unless_thin(module)
        names = renamed(file.modules, to, found)
        with pairs(out, to, [lora]) as written:
            for module in file.modules.values():
                # Read as numbers too, which refuses NaN.
                factors = file.thin(module)
                written.add_stored(
                    names[module.name],
                    _stored(file, module.entries["up"]),
                    _stored(file, module.entries["down"]),
                    factors.scale * factors.down.shape[0],
                )
            blake3 = identity(lora, identities)
            size = written.write(
                file.metadata,
                {"lora": source(blake3, file.metadata), "converted": to},
                f"{ARCHITECTURES[found]}/lora",
                metadata or {},
            )
    return ConvertReport(out, blake3, found, names, size)


def _stored(file: LoraFile, entry: Entry) -> tuple[bytearray, str, tuple[int, ...]]:
    return file.reader.read(entry), entry.dtype, entry.shape
