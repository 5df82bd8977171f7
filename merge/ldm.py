"""Turns diffusers state dicts into the tensors of one SD 1.5-layout single file, and back.

    tensors = to_ldm(unet.state_dict(), vae.state_dict(), text.state_dict())
    safetensors.torch.save_file(tensors, path)

diffusers' `StableDiffusionPipeline.from_single_file(path, config=FOLDER)` loads the result, FOLDER
being what `save_pretrained` wrote. Of any size: the structure is read from the keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from merge.errors import MergeError, listed
from merge.keys import (
    TEXT,
    TEXT_MODEL,
    UNET,
    VAE,
    VAE_ATTENTION,
    inverse,
    text_module,
    translate,
    unet_modules,
    vae_modules,
)
from merge.shapes import (
    unet_shape_of_diffusers,
    unet_shape_of_ldm,
    vae_shape_of_diffusers,
    vae_shape_of_ldm,
)

VAE_LINEAR = tuple(name for name in VAE_ATTENTION if name.startswith("to_"))


TEXT_PARTS = tuple(
    TEXT_MODEL + part for part in ("embeddings.", "encoder.layers.", "final_layer_norm.")
)


@dataclass(frozen=True)
class Components:
    """diffusers state dicts: UNet, VAE, text encoder (`text_model.…`), and keys of none of them."""

    unet: dict[str, Tensor]
    vae: dict[str, Tensor]
    text: dict[str, Tensor]
    rest: dict[str, Tensor]


def to_ldm(
    unet: Mapping[str, Tensor], vae: Mapping[str, Tensor], text: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """diffusers/transformers state dicts → single-file SD 1.5 tensors, sorted by key.

    Tensors keep dtype and values; the VAE's attention (C, C) becomes (C, C, 1, 1). Zero-element
    markers such as `v_pred` are the caller's to add: the weights do not say the prediction type.

    Raises:
        MergeError: a key has no place in the layout (another architecture), all of them named.
    """
    unet_names = unet_modules(unet_shape_of_diffusers(unet))
    vae_names = vae_modules(vae_shape_of_diffusers(vae))
    tensors: dict[str, Tensor] = {}
    homeless: list[str] = []
    for key, tensor in unet.items():
        found = translate(key, unet_names)
        if found is None:
            homeless.append(f"unet {key}")
        else:
            tensors[UNET + found] = tensor.contiguous()
    for key, tensor in vae.items():
        found = translate(key, vae_names)
        if found is None:
            homeless.append(f"vae {key}")
        else:
            wide = tensor[:, :, None, None] if _vae_linear(key) else tensor
            tensors[VAE + found] = wide.contiguous()
    for key, tensor in text.items():
        if not text_module(key).startswith(TEXT_PARTS):
            homeless.append(f"text {key}")
        else:
            tensors[TEXT + text_module(key)] = tensor.contiguous()
    if homeless:
        raise MergeError(
            f"No place in the SD 1.5 layout for {listed(homeless)}. "
            "Only UNet2DConditionModel, AutoencoderKL and CLIPTextModel of SD 1.5's kind fit."
        )
    return dict(sorted(tensors.items()))


def from_ldm(tensors: Mapping[str, Tensor]) -> Components:
    """Single-file SD 1.5 tensors → diffusers state dicts: `to_ldm` backwards.

    Raises:
        MergeError: there is no UNet, or it is not of SD's kind.
    """
    parts: dict[str, dict[str, Tensor]] = {UNET: {}, VAE: {}, TEXT: {}}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        prefix = next((p for p in parts if key.startswith(p)), None)
        (rest if prefix is None else parts[prefix])[key.removeprefix(prefix or "")] = tensor
    unet_names = inverse(unet_modules(unet_shape_of_ldm(parts[UNET])))
    vae_names = inverse(vae_modules(vae_shape_of_ldm(parts[VAE])))
    unet: dict[str, Tensor] = {}
    vae: dict[str, Tensor] = {}
    for source, names, target, prefix in (
        (parts[UNET], unet_names, unet, UNET),
        (parts[VAE], vae_names, vae, VAE),
    ):
        for key, tensor in source.items():
            found = translate(key, names)
            if found is None:
                rest[prefix + key] = tensor
            else:
                narrow = prefix == VAE and _vae_linear(found) and tensor.ndim == 4
                target[found] = tensor[:, :, 0, 0].contiguous() if narrow else tensor
    return Components(unet, vae, {text_module(k): v for k, v in parts[TEXT].items()}, rest)


def _vae_linear(key: str) -> bool:
    head, _, name = key.rpartition("mid_block.attentions.0.")
    return bool(head) and name in {f"{linear}.weight" for linear in VAE_LINEAR}
