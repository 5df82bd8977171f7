"""A base's header into the size of one round's LoRA file, before anything is trained.

Counts what pipeline/train/targets.py covers of the UNet, from names and shapes alone: the layers of
the attention transformers, and with a convolution rank the rest of the UNet's blocks, as far as the
recipe's preset and blocks leave them; and of the text encoders that learn.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from merge.errors import MergeError
from merge.keys import block_of, translate, unet_modules
from merge.shapes import unet_shape_of_diffusers, unet_shape_of_ldm
from pipeline.errors import RequestError
from pipeline.models.components import TEXTS, UNET, Component
from pipeline.models.family import family_of
from pipeline.models.header import read_header
from pipeline.models.layout import is_folder, weights_of
from pipeline.recipe import BuildRecipe
from pipeline.recipe.base import Base
from pipeline.recipe.blocks import Family
from pipeline.recipe.lora import Lora

INSIDE = ".transformer_blocks."
ATTENTION = (INSIDE, ".proj_in.", ".proj_out.")
ENDS = ("time_embed", "label_emb", "add_embedding", "conv_in.", "conv_out.", "out.")
"""What the UNet's names begin with outside its blocks; no LoRA adapts these."""
SDXL_MARKS = ("label_emb.", "add_embedding.")
FIRST_CONVOLUTION = "input_blocks.0.0."
TEXT_LAYER = re.compile(r"\.(?:layers|resblocks)\.(\d+)\.")
"""A text encoder's layer, as transformers and as OpenCLIP name it."""
FLOAT32 = 4
SAVED = {"carried": 1.5, "pissa": 2.0}
"""Times the rank that is trained, which a round's file has at most, by [rounds].start; else 1."""


def lora_bytes(base: Base, lora: Lora) -> int | None:
    """Bytes of the tensors in one LoRA file; None where the base is not there or not understood."""
    try:
        shapes = dict(unet_shapes(base))
    except RequestError:
        return None
    wanted = {name: shape for name, shape in shapes.items() if _is_covered(name, shape, lora)}
    try:
        blocks = _blocks(shapes)
    except MergeError:
        return None
    family: Family = "sdxl" if any(name.startswith(SDXL_MARKS) for name in shapes) else "sd15"
    rates, ranks, conv_ranks = lora.rates(family), lora.ranks(family), lora.conv_ranks(family)
    total = 0
    for name, shape in wanted.items():
        outputs, inputs, block = shape[0], math.prod(shape[1:]), blocks[name]
        if rates.of(block):
            of_kind = conv_ranks if len(shape) == 4 and shape[2:] != (1, 1) else ranks
            rank = int(of_kind.of(block))
            magnitudes = outputs if lora.dora else 0
            total += FLOAT32 * (rank * (inputs + outputs) + 1 + magnitudes) if rank else 0
    return total or None


def text_lora_bytes(base: Base, lora: Lora, learns: Sequence[bool]) -> int:
    """The same of its text encoders' layers alone; `learns`: which of them do, in their order.

    Raises:
        RequestError: the base is not there, or cut short.
    """
    components = TEXTS[family_of(base)]
    # What is said does not depend on the last layers of these: pipeline/models/text.py.
    skipped = (base.clip_skip - 1,) if len(components) == 1 else (1, 0)
    total = 0
    for component, wanted, without in zip(components, learns, skipped, strict=False):
        layers: dict[int, int] = {}
        for name, shape in shapes_of(base, component) if wanted else ():
            found = TEXT_LAYER.search(name)
            if found and len(shape) == 2:
                # OpenCLIP keeps query, key and value in one tensor; a LoRA takes each by itself.
                count = 3 if name.endswith(".in_proj_weight") else 1
                outputs, inputs = shape[0] // count, shape[1]
                each = lora.rank * (inputs + outputs) + 1 + (outputs if lora.dora else 0)
                layers[int(found[1])] = layers.get(int(found[1]), 0) + count * FLOAT32 * each
        total += sum(layers[number] for number in sorted(layers)[: len(layers) - without])
    return total


def learning_encoders(recipe: BuildRecipe) -> tuple[bool, ...]:
    """Which text encoders learn in any round."""
    rates = [law.train.encoder_rates for law in recipe.law()]
    return tuple(any(each) for each in zip(*rates, strict=True))


def unet_shapes(base: Base) -> Iterator[tuple[str, tuple[int, ...]]]:
    """As `shapes_of`, of the UNet."""
    return shapes_of(base, UNET)


def shapes_of(base: Base, component: Component) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name, without its prefix, and the shape of every tensor of one of the base's networks.

    Raises:
        RequestError: the base is not there, or cut short.
    """
    files: tuple[Path, ...] = (base.checkpoint,)
    prefix = component.prefix
    if is_folder(base):
        files, prefix = weights_of(base.checkpoint, component).files, ""
    for file in files:
        for name, fact in read_header(file).tensors.items():
            if name.startswith(prefix):
                yield name.removeprefix(prefix), fact.shape


def _is_covered(name: str, shape: tuple[int, ...], lora: Lora) -> bool:
    if not name.endswith(".weight") or len(shape) not in (2, 4):
        return False
    if name.startswith((*ENDS, FIRST_CONVOLUTION)):
        return False
    if lora.preset != "full":
        return INSIDE in name
    return bool(lora.conv_rank) or any(part in name for part in ATTENTION)


def _blocks(names: Iterable[str]) -> dict[str, str]:
    """Each tensor's block, of a single file's names or a folder's."""
    keys = list(names)
    if any(key.startswith("input_blocks.") for key in keys):
        shape = unet_shape_of_ldm(keys)
        return {key: block_of(key, shape) for key in keys}
    shape = unet_shape_of_diffusers(keys)
    modules = unet_modules(shape)
    return {key: block_of(translate(key, modules) or key, shape) for key in keys}
