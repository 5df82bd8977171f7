"""A base's header into the size of one round's LoRA file, before anything is trained.

Counts what pipeline/train/targets.py covers of the UNet, from names and shapes alone: the layers of
the attention transformers, and with a convolution rank the rest of the UNet's blocks, as far as the
recipe's preset and blocks leave them. Text encoders that learn come on top.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from merge.errors import MergeError
from merge.keys import block_of, translate, unet_modules
from merge.shapes import unet_shape_of_diffusers, unet_shape_of_ldm
from pipeline.errors import RequestError
from pipeline.models.components import UNET
from pipeline.models.header import read_header
from pipeline.models.layout import is_folder, weights_of
from pipeline.recipe.base import Base
from pipeline.recipe.blocks import Family
from pipeline.recipe.lora import Lora

INSIDE = ".transformer_blocks."
ATTENTION = (INSIDE, ".proj_in.", ".proj_out.")
ENDS = ("time_embed", "label_emb", "add_embedding", "conv_in.", "conv_out.", "out.")
"""What the UNet's names begin with outside its blocks; no LoRA adapts these."""
SDXL_MARKS = ("label_emb.", "add_embedding.")
FIRST_CONVOLUTION = "input_blocks.0.0."
FLOAT32 = 4


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


def unet_shapes(base: Base) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name, without its prefix, and the shape of every tensor of the base's UNet.

    Raises:
        RequestError: the base is not there, or cut short.
    """
    files: tuple[Path, ...] = (base.checkpoint,)
    prefix = UNET.prefix
    if is_folder(base):
        files, prefix = weights_of(base.checkpoint, UNET).files, ""
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
