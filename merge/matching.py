"""Decides which LoRA module is added to which layer; every module must find one, and fit it.

Headers only, before any work is done: a LoRA for another model is refused here, never half merged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from merge.arithmetic import DTYPES
from merge.errors import MergeError, listed
from merge.families import refuse_other_family
from merge.layers import Base, Layer, Place
from merge.lora import LoraFile, Module, canonical
from merge.records import Addend
from merge.strength import refuse_misfit, strength_at

Tensor = Literal["weight", "bias"]


@dataclass(frozen=True)
class Use:
    """One LoRA module, to be added to one place of a weight or a bias."""

    addend: int
    file: LoraFile
    module: Module
    tensor: Tensor
    """Which of the layer's two tensors, and which of the module's two deltas."""
    strength: float
    """The addend's, for this layer."""
    place: Place


Uses = dict[str, list[Use]]
"""For each key of one weight file, what is added to it, in the addends' order."""


def match(
    base: Base, addends: Sequence[Addend], files: Sequence[LoraFile], allow_unmatched: bool
) -> tuple[list[Uses], tuple[str, ...]]:
    """What is added to which key of each part, and the modules that found none (if allowed).

    Raises:
        MergeError: a module without a layer, of another shape, of another family; a layer named
            twice by one file; blocks that the base has not; a weight too coarse.
    """
    for addend, file in zip(addends, files, strict=True):
        refuse_other_family(file, base)
        refuse_misfit(addend.strength, base)
    uses: list[Uses] = [{} for _ in base.parts]
    lost: list[str] = []
    misfits: list[str] = []
    for number, (addend, file) in enumerate(zip(addends, files, strict=True)):
        missing = []
        taken: dict[str, str] = {}
        for module in file.modules.values():
            layer = base.layers.get(base.spellings.get(module.name, ""))
            if layer is None or (module.has_bias and not layer.bias):
                missing.append(module.name if layer is None else f"{module.name} (a bias)")
                continue
            if layer.name in taken:
                raise MergeError(
                    f"{file.path} names one layer twice: {taken[layer.name]} and {module.name}."
                )
            taken[layer.name] = module.name
            if not module.fits(layer.shape):
                misfits.append(
                    f"{module.name} in {file.path} is {_shape(module.shape)}, "
                    f"{_label(base, layer)} is {_shape(canonical(layer.shape))}"
                )
                continue
            strength = strength_at(addend.strength, layer)
            for tensor, place in _places(module, layer):
                _refuse_coarse(base, place)
                there = uses[place.part].setdefault(place.key, [])
                there.append(Use(number, file, module, tensor, strength, place))
        if missing and not allow_unmatched:
            raise MergeError(
                f"{len(missing)} of {len(file.modules)} modules of {file.path} have no weight in "
                f"{base.path}: {listed(missing)}. Was the LoRA made for another model?"
            )
        lost += [f"{file.path}: {name}" for name in missing]
    if misfits:
        raise MergeError(
            f"Shapes (out, in, kernel) do not fit: {listed(misfits, 6)}. "
            "The LoRA was made for a model of another size."
        )
    return uses, tuple(lost)


def _places(module: Module, layer: Layer) -> list[tuple[Tensor, Place]]:
    weight: list[tuple[Tensor, Place]] = [("weight", place) for place in layer.weight]
    bias: list[tuple[Tensor, Place]] = [("bias", place) for place in layer.bias]
    return weight * module.has_weight + bias * module.has_bias


def _refuse_coarse(base: Base, place: Place) -> None:
    part = base.parts[place.part]
    dtype = part.header.entries[place.key].dtype
    if dtype not in DTYPES:
        raise MergeError(
            f"{part.label(place.key)} in {base.path} is stored as {dtype}, which would round a "
            "delta away. Merge into an fp16, bf16 or fp32 form of the base."
        )


def _label(base: Base, layer: Layer) -> str:
    place = layer.weight[0]
    return base.parts[place.part].label(place.key)


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
