"""How the frozen weights lie in memory: as loaded, in fewer bits, or quantised.

A layer of fewer bits is brought back to the arithmetic's type inside each product, forward and
backward, and never kept: what autograd holds is the small copy. (diffusers' layerwise casting
swaps the weights around a forward, and the backward after it finds the small ones in its place.)
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from pipeline.recipe.train import Storage

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
}
LARGEST_FP8 = 448.0
"""e4m3's (Micikevicius et al. 2022, arXiv 2209.05433, table 1)."""


def loaded_in(storage: Storage, mixed: str) -> torch.dtype:
    """What weights can be read into so that `store` makes the same of them: the arithmetic's type
    where they pass through it anyway, which spares the larger copy of them in float32."""
    return torch.float32 if storage == "float32" or mixed == "no" else DTYPES[mixed]


def store(network: nn.Module, storage: Storage, mixed: str) -> None:
    """Brings the weights of `network` into `storage`, in place, before any LoRA is attached.

    Args:
        mixed: what products are autocast to: "no", "fp16" or "bf16".
    """
    if storage == "float32":
        return
    if storage == mixed:
        network.to(DTYPES[mixed])
        return
    if mixed != "no":
        network.to(DTYPES[mixed])
    for path, module in list(network.named_modules()):
        if type(module) is nn.Linear and storage in ("nf4", "int8"):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, _quantised(module, storage))
        elif type(module) in (nn.Linear, nn.Conv2d):
            # bitsandbytes has no convolutions.
            _keep(module, "fp8" if storage in ("nf4", "int8") else storage)


def _quantised(module: nn.Linear, storage: Storage) -> nn.Module:
    """bitsandbytes' layer of the same values; packed when it reaches its device."""
    from bitsandbytes import nn as bits

    sizes = (module.in_features, module.out_features, module.bias is not None)
    weight, kept = module.weight.data, None
    if storage == "nf4":
        kept = bits.Linear4bit(*sizes, compute_dtype=weight.dtype, quant_type="nf4")
        kept.weight = bits.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        kept = bits.Linear8bitLt(*sizes, has_fp16_weights=False)
        kept.weight = bits.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    kept.bias = module.bias
    packed: nn.Module = kept.to(weight.device)
    return packed.requires_grad_(False)


def _keep(module: nn.Linear | nn.Conv2d, storage: Storage) -> None:
    """Changes a layer's weights to `storage`, and its forward to one that knows them."""
    weight = module.weight.data.float()
    scale = torch.ones((), device=weight.device)
    if storage == "fp8":
        # A scale for each output: weights of a few hundredths lie below e4m3's normal numbers.
        largest = weight.flatten(1).abs().amax(1).clamp(min=1e-12)
        scale = (largest / LARGEST_FP8).view(-1, *[1] * (weight.dim() - 1))
    small = (weight / scale).to(DTYPES[storage])
    module.weight = nn.Parameter(small, requires_grad=False)
    module.register_buffer("scale", scale, persistent=False)
    # Of this layer alone: peft makes a LoRA's factors of the class of the layer that they adapt.
    module.__dict__["forward"] = partial(_forward, module)


def _forward(module: Any, x: Tensor) -> Tensor:
    how = None
    if isinstance(module, nn.Conv2d):
        how = (module.stride, module.padding, module.dilation, module.groups)
    made: Tensor = _Product.apply(x, module.weight, module.scale, module.bias, how)
    return made


class _Product(torch.autograd.Function):
    """A linear layer, or with `how` a convolution, by stored weights that get no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, how: Any
    ) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        ctx.save_for_backward(weight, scale)
        ctx.how, ctx.shape, ctx.entered = how, x.shape, x.dtype
        full, shift = _full(weight, scale, dtype), None if bias is None else bias.to(dtype)
        if how is None:
            return F.linear(x.to(dtype), full, shift)
        return F.conv2d(x.to(dtype), full, shift, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        full = _full(weight, scale, gradient.dtype)
        if ctx.how is None:
            back = gradient @ full
        else:
            back = conv2d_input(ctx.shape, full, gradient, *ctx.how)
        return back.to(ctx.entered), None, None, None, None


def _full(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights as they are multiplied by."""
    if weight.dtype == torch.float8_e4m3fn:
        return (weight.float() * scale).to(dtype)
    return weight.to(dtype)
