"""Which layers a LoRA covers, with which rank: those that kohya's format names.

Every linear layer and 1x1 convolution inside the UNet's attention transformers; with a convolution
rank also the resnets, down- and upsamplers.
"""

from dataclasses import dataclass

from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from pipeline.recipe.lora import Lora
from pipeline.train.denoiser import Denoiser, plain

_ATTENTION = (Transformer2DModel,)
_CONVOLUTION = (ResnetBlock2D, Downsample2D, Upsample2D)


@dataclass(frozen=True)
class Target:
    """A layer that gets a delta."""

    name: str
    """Its path in the Denoiser."""
    rank: int
    alpha: float


def targets(network: Denoiser, lora: Lora) -> list[Target]:
    """The layers to adapt, in the order of the module tree, each once.

    A rank above a layer's own size cannot add anything: it is cut to that size, with alpha cut by
    the same factor, so that the scale alpha / rank stays the recipe's.
    """
    found: dict[str, Target] = {}
    parents = _ATTENTION + (_CONVOLUTION if lora.conv_rank else ())
    for parent_name, parent in network.named_modules():
        if not isinstance(parent, parents):
            continue
        for name, child in plain(parent.named_modules(prefix=parent_name)):
            target = _target(name, child, lora)
            if target is not None:
                found.setdefault(name, target)
    return list(found.values())


def _target(name: str, module: nn.Linear | nn.Conv2d, lora: Lora) -> Target | None:
    spatial = isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
    rank = lora.conv_rank if spatial else lora.rank
    alpha = lora.convolution_alpha if spatial else lora.linear_alpha
    if rank == 0:
        return None
    fits = min(rank, _largest_rank(module))
    return Target(name, fits, alpha * fits / rank)


def _largest_rank(module: nn.Linear | nn.Conv2d) -> int:
    if isinstance(module, nn.Linear):
        return min(module.in_features, module.out_features)
    kernel = module.kernel_size[0] * module.kernel_size[1]
    return min(module.in_channels * kernel, module.out_channels)
