"""Which layers a LoRA covers, with which rank: those that kohya's format names.

Every linear layer and 1x1 convolution inside the UNet's attention transformers; with a convolution
rank also the resnets, down- and upsamplers; of these what the recipe's preset and blocks leave. Of
a text encoder that learns, its attentions and MLPs, up to the last layer whose output is read.
"""

from dataclasses import dataclass

from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention

from pipeline.errors import RequestError
from pipeline.recipe.blocks import Blocks, Family
from pipeline.recipe.lora import Lora
from pipeline.train.denoiser import Denoiser, plain
from pipeline.train.naming import blocks_of, is_sdxl

_ATTENTION = (Transformer2DModel,)
_CONVOLUTION = (ResnetBlock2D, Downsample2D, Upsample2D)
_TEXT = (CLIPAttention, CLIPMLP)
_INSIDE = ".transformer_blocks."
"""In the paths of attention and feed-forward layers; not in those of the projections around."""


@dataclass(frozen=True)
class Target:
    """A layer that gets a delta."""

    name: str
    """Its path in the Denoiser."""
    rank: int
    alpha: float
    rate: float = 1.0
    """Share of the round's learning rate."""


def targets(network: Denoiser, lora: Lora) -> list[Target]:
    """The layers to adapt, in the order of the module tree, each once.

    Raises:
        RequestError: [lora] names a block that the UNet has not, or a rank above a layer's size: a
            larger one cannot add anything there.
    """
    return [*_in_unet(network, lora), *_in_text(network, lora)]


def _in_text(network: Denoiser, lora: Lora) -> list[Target]:
    made = []
    for parent_name, parent in network.named_modules():
        if not (isinstance(parent, _TEXT) and network.learns(parent_name)):
            continue
        for name, child in plain(parent.named_modules(prefix=parent_name)):
            if lora.rank > (most := _largest_rank(child)):
                raise RequestError(
                    f"[lora] asks for rank {lora.rank} in {name}, whose size allows {most}: more "
                    "cannot add anything. Lower [lora].rank."
                )
            made.append(Target(name, lora.rank, lora.linear_alpha, network.share(name)))
    return made


def _in_unet(network: Denoiser, lora: Lora) -> list[Target]:
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    parents = _ATTENTION + (_CONVOLUTION if lora.conv_rank else ())
    for parent_name, parent in network.unet.named_modules(prefix="unet"):
        if not isinstance(parent, parents):
            continue
        for name, child in plain(parent.named_modules(prefix=parent_name)):
            if lora.preset == "full" or _INSIDE in name:
                found.setdefault(name, child)
    blocks = blocks_of(network, found)
    rates, ranks, conv_ranks = _blocks(network, lora)
    made = []
    for name, child in found.items():
        spatial = isinstance(child, nn.Conv2d) and child.kernel_size != (1, 1)
        rank = int((conv_ranks if spatial else ranks).of(blocks[name]))
        rate = rates.of(blocks[name])
        if not rank or not rate:
            continue
        if rank > (most := _largest_rank(child)):
            key = "conv_rank" if spatial else "rank"
            raise RequestError(
                f"[lora] asks for rank {rank} in {name}, whose size allows {most}: more cannot add "
                f"anything. Lower [lora].{key}, or give the block {blocks[name]} {most} or less in "
                f"[lora].block_{key}s."
            )
        alpha = lora.convolution_alpha if spatial else lora.linear_alpha
        made.append(Target(name, rank, alpha, rate))
    return made


def _blocks(network: Denoiser, lora: Lora) -> tuple[Blocks, Blocks, Blocks]:
    family: Family = "sdxl" if is_sdxl(network) else "sd15"
    layers = (path for path, _ in plain(network.unet.named_modules(prefix="unet")))
    there = frozenset(blocks_of(network, layers).values())
    found = lora.rates(family), lora.ranks(family), lora.conv_ranks(family)
    for key, blocks in zip(("blocks", "block_ranks", "block_conv_ranks"), found, strict=True):
        try:
            blocks.require_fit(there, family)
        except ValueError as error:
            raise RequestError(f"[lora].{key} {error}.") from None
    return found


def _largest_rank(module: nn.Linear | nn.Conv2d) -> int:
    if isinstance(module, nn.Linear):
        return min(module.in_features, module.out_features)
    kernel = module.kernel_size[0] * module.kernel_size[1]
    return min(module.in_channels * kernel, module.out_channels)
