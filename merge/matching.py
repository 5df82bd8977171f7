"""Decides which LoRA module is added to which weight; every module must find one, and fit it.

Headers only, before any work is done: a LoRA for another model is refused here, never half merged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from merge.arithmetic import DTYPES
from merge.errors import MergeError, listed
from merge.layout import Part
from merge.lora import LoraFile, Module, canonical
from merge.records import Addend


@dataclass(frozen=True)
class Use:
    """One LoRA module, to be added to one weight."""

    addend: int
    file: LoraFile
    module: Module
    strength: float


Uses = dict[str, list[Use]]
"""For each key of one weight file, what is added to it, in the addends' order."""


def match(
    base: Path,
    parts: Sequence[Part],
    addends: Sequence[Addend],
    files: Sequence[LoraFile],
    allow_unmatched: bool,
) -> tuple[list[Uses], tuple[str, ...]]:
    """What is added to which key of each part, and the modules that found none (if allowed).

    Raises:
        MergeError: a module without a weight, of another shape, of SDXL; a weight too coarse.
    """
    uses: list[Uses] = [{} for _ in parts]
    lost: list[str] = []
    misfits: list[str] = []
    for number, (addend, file) in enumerate(zip(addends, files, strict=True)):
        _refuse_sdxl(file)
        missing = []
        for name, module in file.modules.items():
            found = [(i, key) for i, part in enumerate(parts) for key in part.targets.get(name, ())]
            if not found:
                missing.append(name)
            for i, key in found:
                entry = parts[i].header.entries[key]
                if canonical(entry.shape) != module.shape:
                    misfits.append(
                        f"{name} in {file.path} is {_shape(module.shape)}, "
                        f"{parts[i].label(key)} is {_shape(canonical(entry.shape))}"
                    )
                if entry.dtype not in DTYPES:
                    raise MergeError(
                        f"{parts[i].label(key)} in {base} is stored as {entry.dtype}, which would "
                        "round a delta away. Merge into an fp16, bf16 or fp32 form of the base."
                    )
                there = uses[i].setdefault(key, [])
                if there and there[-1].addend == number:
                    raise MergeError(
                        f"{file.path} names one layer twice: {there[-1].module.name} and {name}."
                    )
                there.append(Use(number, file, module, float(addend.strength)))
        if missing and not allow_unmatched:
            raise MergeError(
                f"{len(missing)} of {len(file.modules)} modules of {file.path} have no weight in "
                f"{base}: {listed(missing)}. Was the LoRA made for another model?"
            )
        lost += [f"{file.path}: {name}" for name in missing]
    if misfits:
        raise MergeError(
            f"Shapes (out, in, kernel) do not fit: {'; '.join(misfits[:6])}"
            + (f" and {len(misfits) - 6} more" if len(misfits) > 6 else "")
            + ". The LoRA was made for a model of another size."
        )
    return uses, tuple(lost)


def _refuse_sdxl(file: LoraFile) -> None:
    signs = ("lora_te2_", "lora_unet_input_blocks_", "lora_unet_output_blocks_")
    sign = next((name for name in file.modules if name.startswith(signs)), None)
    if sign is not None:
        raise MergeError(f"{file.path} is an SDXL LoRA ({sign}); the base is SD 1.5.")


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
