"""What a UNet is told beside the noisy latent, and the one call that asks it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from pipeline.artefacts.records import LatentRecord
from pipeline.models.shards import TextStore
from pipeline.models.text import TextStack

TextKey = tuple[str, int]
"""A picture's md5 ("" for the empty caption) and which of its texts."""


@dataclass(frozen=True)
class Added:
    """What SDXL is told beside the words (Podell et al. 2023, arXiv 2307.01952, section 2.2)."""

    pooled: Tensor
    """(B, P) float32: the second text encoder's pooled output."""
    time_ids: Tensor
    """(B, 6) float32: pixels of `time_ids`."""


@dataclass(frozen=True)
class Conditioning:
    """Of one batch."""

    hidden: Tensor
    """(B, 77, D) float32: the captions' hidden states."""
    added: Added | None
    """SDXL's; SD 1.5 has none."""


@dataclass(frozen=True)
class Spoken:
    """Captions of one batch that are still to be encoded: where the text encoders learn."""

    tokens: Tensor
    """(B, encoders, 77 x chunks) int64."""
    time_ids: Tensor
    """(B, 6) float32: pixels of `time_ids`. SD 1.5 does not look at them."""


def conditioning(
    texts: TextStore, keys: Sequence[TextKey], pictures: Sequence[LatentRecord]
) -> Conditioning:
    """The cached texts `keys` of `pictures`, in their order, on the CPU."""
    hidden = torch.stack([texts.hidden(*key) for key in keys]).float()
    pooled = [row for row in (texts.pooled(*key) for key in keys) if row is not None]
    if not pooled:
        return Conditioning(hidden, None)
    return Conditioning(hidden, Added(torch.stack(pooled).float(), sizes_of(pictures)))


def encoded(text: TextStack, spoken: Spoken) -> Conditioning:
    """What `text` makes of captions now; gradients flow."""
    hidden, pooled = text.forward(spoken.tokens)
    return Conditioning(hidden, None if pooled is None else Added(pooled, spoken.time_ids))


def sizes_of(pictures: Sequence[LatentRecord]) -> Tensor:
    """(B, 6) float32: `time_ids` of each."""
    return torch.tensor([time_ids(picture) for picture in pictures]).float()


def time_ids(picture: LatentRecord) -> tuple[int, int, int, int, int, int]:
    """Original height and width, crop from top and left, target height and width, pixels: the order
    of StableDiffusionXLPipeline._get_add_time_ids."""
    return (
        *(picture.original_height, picture.original_width),
        *(picture.crop_top, picture.crop_left),
        *(picture.height, picture.width),
    )


def predict(
    unet: UNet2DConditionModel, noisy: Tensor, timesteps: Tensor, told: Conditioning
) -> Tensor:
    """(B, C, H, W): what the network says of noisy latents of that shape at `timesteps`, (B,)."""
    added = told.added
    extra = None
    if added is not None:
        extra = {"text_embeds": added.pooled, "time_ids": added.time_ids}
    said: Tensor = unet(noisy, timesteps, told.hidden, added_cond_kwargs=extra).sample
    return said
