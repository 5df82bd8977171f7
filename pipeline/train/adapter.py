"""One LoRA on a UNet, through peft: the layers it covers, its strength, and its kohya-format file.

Layers are those that kohya's format names: every linear layer and 1x1 convolution inside the
attention transformers; with a convolution rank also the resnets, down- and upsamplers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.artefacts.files import write_bytes
from pipeline.artefacts.tensors import ordered
from pipeline.recipe.lora import Lora
from pipeline.train.counted import seed_of
from pipeline.train.naming import unet_names

NAME = "round"
_ATTENTION = (Transformer2DModel,)
_CONVOLUTION = (ResnetBlock2D, Downsample2D, Upsample2D)


@dataclass(frozen=True)
class Target:
    """A layer that gets a delta."""

    name: str
    rank: int
    alpha: float


def targets(unet: UNet2DConditionModel, lora: Lora) -> list[Target]:
    """The layers to adapt, in the order of the module tree, each once.

    A rank above a layer's own size cannot add anything: it is cut to that size, with alpha cut by
    the same factor, so that the scale alpha / rank stays the recipe's.
    """
    found: dict[str, Target] = {}
    parents = _ATTENTION + (_CONVOLUTION if lora.conv_rank else ())
    for parent_name, parent in unet.named_modules():
        if not isinstance(parent, parents):
            continue
        for child_name, child in parent.named_modules():
            name = f"{parent_name}.{child_name}"
            size = _largest_rank(child)
            if size is None:
                continue
            spatial = isinstance(child, nn.Conv2d) and child.kernel_size != (1, 1)
            rank = lora.conv_rank if spatial else lora.rank
            alpha = lora.convolution_alpha if spatial else lora.linear_alpha
            if rank == 0:
                continue
            fits = min(rank, size)
            found.setdefault(name, Target(name, fits, alpha * fits / rank))
    return list(found.values())


def _largest_rank(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return min(module.in_features, module.out_features)
    if isinstance(module, nn.Conv2d):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        return min(module.in_channels * kernel, module.out_channels)
    return None


def attach(unet: UNet2DConditionModel, lora: Lora, seed: int) -> list[Target]:
    """Adds a fresh LoRA: down by Kaiming from `seed`, up zero, so that the network is unchanged.

    All other weights are frozen; the factors are float32 whatever the UNet's dtype.
    """
    covered = targets(unet, lora)
    first = covered[0]
    config = LoraConfig(
        r=first.rank,
        lora_alpha=first.alpha,  # peft only divides it; alphas are reals
        target_modules=[t.name for t in covered],
        rank_pattern={exactly(t.name): t.rank for t in covered},
        alpha_pattern={exactly(t.name): t.alpha for t in covered},
        init_lora_weights=True,
    )
    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "lora"))
        unet.add_adapter(config, adapter_name=NAME)
    for parameter in trainable(unet):
        parameter.data = parameter.data.float()
    return covered


def exactly(name: str) -> str:
    return "^" + name.replace(".", r"\.")


def layers(unet: UNet2DConditionModel) -> Iterator[tuple[str, LoraLayer]]:
    """(diffusers module name, peft layer) of every adapted layer."""
    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def trainable(unet: UNet2DConditionModel) -> list[nn.Parameter]:
    """The LoRA's factors, in module order."""
    return [p for p in unet.parameters() if p.requires_grad]


def set_strength(unet: UNet2DConditionModel, strength: float) -> None:
    """Multiplies the delta of every adapted layer by `strength`; nothing is written to weights."""
    for _, layer in layers(unet):
        layer.set_scale(NAME, strength)


def factors(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Under kohya's names: lora_down (r, in[, k, k]), lora_up (out, r[, 1, 1]) and alpha ()."""
    tensors = {}
    for key, layer in named(unet):
        down = layer.lora_A[NAME].weight
        up = layer.lora_B[NAME].weight
        tensors[f"{key}.lora_down.weight"] = down.detach().float().cpu().contiguous()
        tensors[f"{key}.lora_up.weight"] = up.detach().float().cpu().contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(layer.lora_alpha[NAME]))
    return tensors


def set_factors(unet: UNet2DConditionModel, tensors: Mapping[str, Tensor]) -> None:
    """Puts factors saved by `factors` back into the attached adapter."""
    for key, layer in named(unet):
        layer.lora_A[NAME].weight.data.copy_(tensors[f"{key}.lora_down.weight"])
        layer.lora_B[NAME].weight.data.copy_(tensors[f"{key}.lora_up.weight"])


def named(unet: UNet2DConditionModel) -> Iterator[tuple[str, LoraLayer]]:
    """(kohya's name, peft layer) of every adapted layer."""
    adapted = dict(layers(unet))
    for module, name in unet_names(unet, adapted).items():
        yield name, adapted[module]


def save_lora(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a kohya-format file, in float32: late rounds' factors are too small for fp16."""
    write_bytes(path, ordered(save(dict(tensors), metadata=dict(metadata))))


def load_lora(unet: UNet2DConditionModel, path: Path) -> None:
    """Reads a file of `save_lora` into the attached adapter."""
    set_factors(unet, load_file(path))
