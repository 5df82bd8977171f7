"""[lora].init: the LoRA file that a build's first round goes on with, into the fresh adapter.

kohya's, diffusers' and PEFT's layouts, as merge reads them; plain LoRA of [lora]'s ranks.
"""

from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from merge.errors import MergeError
from merge.lora import open_loras
from merge.lora_layout import renamed
from pipeline.errors import RequestError
from pipeline.train.adapter import NAME, named
from pipeline.train.denoiser import Denoiser
from pipeline.train.naming import is_sdxl


def go_on_from(network: Denoiser, file: Path) -> None:
    """Puts the factors of `file` into the round's adapter; layers that it has not start fresh.

    Where its alpha / rank is another than [lora]'s, both factors take the root of what lies
    between, so that the delta is the file's.

    Raises:
        RequestError: it is no plain LoRA, or has a layer that [lora] does not cover, or one of
            another size or rank.
    """
    adapted = dict(named(network))
    try:
        with open_loras([file]) as (lora,):
            names = renamed(lora.modules, "kohya", "sdxl" if is_sdxl(network) else "sd15")
            strange = [name for name in lora.modules if names[name] not in adapted]
            if strange:
                raise RequestError(
                    f"{file} ([lora].init) changes {len(strange)} layers that [lora] does not "
                    f"cover, {strange[0]} among them. Let it cover them (conv_rank, preset, "
                    "blocks, [train].text_encoder_rate), or take another file."
                )
            for name, module in lora.modules.items():
                factors = lora.thin(module)
                _fill(adapted[names[name]], factors.up, factors.down, factors.scale, name, file)
    except MergeError as error:
        raise RequestError(f"[lora].init cannot be gone on with: {error}") from error


@torch.no_grad()
def _fill(layer: LoraLayer, up: Tensor, down: Tensor, scale: float, name: str, file: Path) -> None:
    own_down, own_up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    found, wanted = (up.shape, down.shape), (own_up.flatten(1).shape, own_down.flatten(1).shape)
    if found != wanted:
        raise RequestError(
            f"{file} ([lora].init) has rank {len(down)} for {name}, of {len(up)} x {down.shape[1]},"
            f" where [lora] has rank {len(own_down)}, of {len(own_up)} x {wanted[1][1]}. Give "
            "[lora] the ranks that it was trained with, or bring it to these with `urushi lora "
            "resize`."
        )
    root = (scale / layer.scaling[NAME]) ** 0.5
    own_down.copy_((down * root).view_as(own_down))
    own_up.copy_((up * root).view_as(own_up))
