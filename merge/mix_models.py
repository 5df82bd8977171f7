"""Looks at the models of a mix and says which tensor of each is the same weight of the model.

Single files of one family. Spellings are evened out: text encoders without `text_model.`, a VAE in
a file of its own (ldm's keys or diffusers'). Headers only; no numbers are read.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from merge.blocks import BLOCKS
from merge.container import Entry
from merge.errors import MergeError
from merge.families import NAMES, what_is
from merge.keys import (
    SDXL_TEXT,
    SDXL_TEXT_2,
    TEXT,
    UNET,
    VAE,
    block_of,
    ema_key,
    text_module,
    translate,
    vae_modules,
)
from merge.layers import Family, Part
from merge.layout import look
from merge.mix_recipe import Apart, MixRecipe
from merge.pickled import header_of
from merge.shapes import UNetShape, unet_shape_of_ldm, vae_shape_of_diffusers

POSITIONS = ".position_ids"
"""0, 1, 2, …: some files keep them as floats, and a sum may round 18 to 17.99, which programs cut
to 17."""


@dataclass(frozen=True)
class Model:
    """One model of a mix, looked at but not read."""

    name: str
    """In the recipe."""
    path: Path
    family: Family | None
    """None for a file of a VAE alone."""
    part: Part
    keys: Mapping[str, str] = field(repr=False)
    """Key as all files have it → key in this file."""

    def find(self, *keys: str) -> Entry | None:
        """The tensor of the first of these keys, as all files have them, that the file has."""
        for key in keys:
            if key in self.keys:
                return self.part.header.entries[self.keys[key]]
        return None


@dataclass(frozen=True)
class Plan:
    """Where each key of the model that leads a mix belongs."""

    shape: UNetShape
    plain: Mapping[str, str] = field(repr=False)
    """Key of a moving average's copy → the UNet key that it is a copy of."""

    def apart(self, key: str) -> tuple[Apart, str] | None:
        """The network of a key, and the block if it is of the UNet; None for what is not mixed."""
        key = self.plain.get(key, key)
        if key.startswith(UNET):
            return "unet", block_of(key.removeprefix(UNET), self.shape)
        if key.endswith(POSITIONS):
            return None
        if key.startswith((TEXT, SDXL_TEXT)):
            return "te1", ""
        if key.startswith(SDXL_TEXT_2):
            return "te2", ""
        return ("vae", "") if key.startswith(VAE) else None


def plan_of(leading: Model) -> Plan:
    """Raises MergeError: the UNet is incomplete."""
    unet = [key for key in leading.keys if key.startswith(UNET)]
    shape = unet_shape_of_ldm([key.removeprefix(UNET) for key in unet])
    return Plan(shape, {ema_key(key): key for key in unet})


def look_at_all(recipe: MixRecipe) -> dict[str, Model]:
    """The models by name.

    Raises:
        MergeError: one is no single-file checkpoint, they are of two families, or the recipe names
            blocks that the model has not.
    """
    mixed = {name for step in recipe.steps for name in step.inputs}
    models = {
        name: _look(name, path, alone=name == recipe.vae and name not in mixed)
        for name, path in recipe.models.items()
    }
    leading = models[recipe.leading]
    for model in models.values():
        if model.family not in (None, leading.family):
            raise MergeError(
                f"{leading.path} is {_family(leading)} and {model.path} is {_family(model)}: "
                "weights of two families have nothing in common. Mix models of one."
            )
    _refuse_strange_blocks(recipe, leading)
    return models


def _family(model: Model) -> str:
    return NAMES[model.family] if model.family else "a VAE"


def _look(name: str, path: Path, alone: bool) -> Model:
    """alone: nothing but a VAE is wanted, so that a file of one will do."""
    if path.is_dir():
        raise MergeError(
            f"{path} is a folder; single files are mixed. Name the pipeline's single-file form."
        )
    if alone and path.exists():
        header = header_of(path)
        if what_is(header.entries) == "a VAE":
            keys = _vae_keys(header.entries)
            part = Part(path, "", header, frozenset(keys.values()))
            return Model(name, path, None, part, keys)
    base = look(path)
    (part,) = base.parts
    keys = {evened(key): key for key in part.header.entries}
    return Model(name, path, base.family, part, keys)


def evened(key: str) -> str:
    """A single file's key as all of them have it."""
    for prefix in (TEXT, SDXL_TEXT):
        if key.startswith(prefix):
            return prefix + text_module(key.removeprefix(prefix))
    return key


def _vae_keys(keys: Iterable[str]) -> dict[str, str]:
    """Key in a single file → key in the file of a VAE alone."""
    names = list(keys)
    if any(name.startswith(VAE) for name in names):
        return {name: name for name in names if name.startswith(VAE)}
    if any(".down_blocks." in name or ".up_blocks." in name for name in names):
        modules = vae_modules(vae_shape_of_diffusers(names))
        found = {name: translate(name, modules) for name in names}
        return {VAE + ldm: name for name, ldm in found.items() if ldm is not None}
    inside = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    return {VAE + name: name for name in names if name.startswith(inside)}


def _refuse_strange_blocks(recipe: MixRecipe, leading: Model) -> None:
    plan = plan_of(leading)
    places = (plan.apart(key) for key in leading.keys)
    there = {place[1] for place in places if place is not None and place[0] == "unet"}
    for step in recipe.steps:
        for amount in step.amounts:
            strange = sorted(amount.blocks.keys() - there)
            counts = len(amount.blocks)
            if amount.unet is None:
                # A list means the blocks of its family, however many of them this model has.
                family = next(f for f, blocks in BLOCKS.items() if len(blocks) == counts)
                if family == leading.family:
                    continue
                raise MergeError(
                    f"Step {step.name!r} has numbers for the {counts} blocks of {NAMES[family]}, "
                    f"and {leading.path} is {_family(leading)}. Give "
                    f"{'19 or 20' if leading.family == 'sdxl' else '25 or 26'}, or names such as "
                    "IN04-07=0.3."
                )
            if strange:
                inside = ", ".join(block for block in BLOCKS["sd15"] if block in there)
                raise MergeError(
                    f"{leading.path} has no block {', '.join(strange)} (step {step.name!r}). "
                    f"It has {inside}."
                )


def refuse_other_shapes(key: str, found: Mapping[str, Entry], models: Mapping[str, Model]) -> None:
    """Raises MergeError: a weight has other sizes in one model than in another.

    A linear layer and a 1x1 convolution of the same numbers are the same.
    """
    shapes = {name: _narrow(entry.shape) for name, entry in found.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise MergeError(
                f"{key} is {list(found[first].shape)} in {models[first].path} and "
                f"{list(found[name].shape)} in {models[name].path}: an inpainting model, or one of "
                "another size. Mix models of one kind, or give this block the factor 0 (IN00=0)."
            )


def _narrow(shape: Sequence[int]) -> tuple[int, ...]:
    kernel = shape[2:]
    return tuple(shape[:2]) if math.prod(kernel) == 1 else tuple(shape)
