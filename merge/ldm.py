"""Turns diffusers state dicts into the tensors of one single-file checkpoint, and back.

    tensors = to_ldm(unet.state_dict(), vae.state_dict(), text.state_dict())            # SD 1.5
    tensors = to_ldm(unet.state_dict(), vae.state_dict(), text.state_dict(), text_2=…)  # SDXL
    safetensors.torch.save_file(tensors, path)

diffusers' `from_single_file(path, config=FOLDER)` loads the result, FOLDER being what
`save_pretrained` wrote. Of any size: the structure is read from the keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from merge.errors import MergeError, listed
from merge.keys import (
    SDXL_TEXT,
    SDXL_TEXT_2,
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
from merge.openclip import THIRDS, Piece, piece_of, pieces
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
    """diffusers state dicts, as `from_ldm` finds them in one file."""

    unet: dict[str, Tensor]
    vae: dict[str, Tensor]
    text: dict[str, Tensor]
    """CLIP-L, with `text_model.` in front of its keys."""
    rest: dict[str, Tensor]
    """Tensors of none of the components, under the file's keys."""
    text_2: dict[str, Tensor] = field(default_factory=dict)
    """SDXL's OpenCLIP bigG, in transformers' layout; empty for SD 1.5."""


def to_ldm(
    unet: Mapping[str, Tensor],
    vae: Mapping[str, Tensor],
    text: Mapping[str, Tensor],
    text_2: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """diffusers/transformers state dicts → single-file tensors, sorted by key.

    With `text_2`, the state dict of SDXL's CLIPTextModelWithProjection, the file is SDXL's (sgm's
    keys, `text_2` in OpenCLIP's layout); without it, it is SD 1.5's. Tensors keep dtype and values;
    the VAE's attention (C, C) becomes (C, C, 1, 1). Zero-element markers such as `v_pred` are the
    caller's to add: the weights do not say the prediction type.

    Raises:
        MergeError: a key has no place in the layout (another architecture), all of them named.
    """
    unet_names = unet_modules(unet_shape_of_diffusers(unet))
    vae_names = vae_modules(vae_shape_of_diffusers(vae))
    text_prefix = TEXT if text_2 is None else SDXL_TEXT
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
            tensors[text_prefix + text_module(key)] = tensor.contiguous()
    joined, strangers = _to_openclip(text_2 or {})
    tensors |= {SDXL_TEXT_2 + key: tensor for key, tensor in joined.items()}
    homeless += [f"text_2 {key}" for key in strangers]
    if homeless:
        raise MergeError(
            f"No place in the {'SD 1.5' if text_2 is None else 'SDXL'} layout for "
            f"{listed(homeless)}. Only UNet2DConditionModel, AutoencoderKL and the CLIP text "
            "encoders of these models' kind fit."
        )
    return dict(sorted(tensors.items()))


def from_ldm(tensors: Mapping[str, Tensor]) -> Components:
    """Single-file tensors, SD 1.5's or SDXL's → diffusers state dicts: `to_ldm` backwards.

    Raises:
        MergeError: there is no UNet, or it is not of SD's kind.
    """
    prefixes = (UNET, VAE, TEXT, SDXL_TEXT, SDXL_TEXT_2)
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        prefix = next((p for p in prefixes if key.startswith(p)), None)
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
    text = {text_module(key): tensor for key, tensor in (parts[TEXT] | parts[SDXL_TEXT]).items()}
    text_2: dict[str, Tensor] = {}
    for key, tensor in parts[SDXL_TEXT_2].items():
        found_pieces = pieces(key)
        text_2 |= {piece.key: _piece(tensor, piece) for piece in found_pieces}
        if not found_pieces:
            rest[SDXL_TEXT_2 + key] = tensor
    return Components(unet, vae, text, rest, text_2)


def _to_openclip(text: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """OpenCLIP's tensors of a transformers state dict, and the keys that have no place there."""
    joined: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    strangers = []
    for key, tensor in text.items():
        piece = piece_of(text_module(key))
        if piece is None:
            strangers.append(key)
        elif piece.third is not None:
            thirds.setdefault(piece.key, {})[piece.third] = tensor
        else:
            joined[piece.key] = (tensor.T if piece.transposed else tensor).contiguous()
    for key, found in thirds.items():
        if len(found) == len(THIRDS):
            joined[key] = torch.cat([found[third] for third in range(len(THIRDS))])
        else:
            strangers.append(f"{key} (not all of query, key and value)")
    return joined, strangers


def _piece(tensor: Tensor, piece: Piece) -> Tensor:
    if piece.third is not None:
        return tensor.chunk(len(THIRDS))[piece.third].contiguous()
    return tensor.T.contiguous() if piece.transposed else tensor


def _vae_linear(key: str) -> bool:
    head, _, name = key.rpartition("mid_block.attentions.0.")
    return bool(head) and name in {f"{linear}.weight" for linear in VAE_LINEAR}
