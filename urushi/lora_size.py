"""A base's header into the size of one round's LoRA file, before anything is trained.

Counts what pipeline/train/adapter.py adapts, from names and shapes alone: the layers of the
attention transformers, and with a convolution rank the rest of the UNet's blocks.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import RequestError
from pipeline.models.components import UNET
from pipeline.models.header import read_header
from pipeline.models.layout import is_folder, weights_of
from pipeline.recipe.base import Base
from pipeline.recipe.lora import Lora

ATTENTION = (".transformer_blocks.", ".proj_in.", ".proj_out.")
ENDS = ("time_embed", "label_emb", "add_embedding", "conv_in.", "conv_out.", "out.")
"""What the UNet's names begin with outside its blocks; no LoRA adapts these."""
FIRST_CONVOLUTION = "input_blocks.0.0."
FLOAT32 = 4


def lora_bytes(base: Base, lora: Lora) -> int | None:
    """Bytes of the tensors in one LoRA file; None where the base is not there or not understood."""
    try:
        shapes = dict(unet_shapes(base))
    except RequestError:
        return None
    return sum(_layer_bytes(name, shape, lora) for name, shape in shapes.items()) or None


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


def _layer_bytes(name: str, shape: tuple[int, ...], lora: Lora) -> int:
    if not name.endswith(".weight") or len(shape) not in (2, 4):
        return 0
    if name.startswith((*ENDS, FIRST_CONVOLUTION)):
        return 0
    attention = any(part in name for part in ATTENTION)
    if not attention and not lora.conv_rank:
        return 0
    outputs, inputs = shape[0], math.prod(shape[1:])
    spatial = len(shape) == 4 and shape[2:] != (1, 1)
    rank = min(lora.conv_rank if spatial else lora.rank, inputs, outputs)
    return FLOAT32 * (rank * (inputs + outputs) + 1)
