"""Looks at a base (single file or diffusers folder) and says where each of its layers lies.

Only headers are read. A single file has ldm's keys (SD 1.5) or sgm's (SDXL, the same UNet and VAE);
a folder is what `save_pretrained` writes (merge/layout_folder.py). Structure is read from the keys.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from merge.census import Census
from merge.errors import MergeError
from merge.families import what_is
from merge.keys import (
    SDXL_TEXT,
    SDXL_TEXT_2,
    TEXT,
    UNET,
    VAE,
    block_of,
    ema_key,
    inverse,
    text_module,
    translate,
    unet_modules,
    vae_modules,
)
from merge.layers import Base, Family, Network, Part
from merge.layout_folder import look_at_folder
from merge.openclip import pieces
from merge.pickled import header_of
from merge.shapes import unet_shape_of_ldm, vae_shape_of_ldm

TEXT_ENCODERS: Mapping[str, Network] = {TEXT: "te1", SDXL_TEXT: "te1"}
"""Prefix of the text encoders that single files hold in transformers' layout."""


def look(base: Path) -> Base:
    """The layers of `base`, where they lie, and every name that a LoRA may give them.

    Raises:
        MergeError: missing, unreadable, or no checkpoint of SD 1.5's or SDXL's kind.
    """
    if base.is_dir():
        return look_at_folder(base)
    if not base.exists():
        raise MergeError(f"There is no base checkpoint at {base}. Check the path.")
    header = header_of(base)
    keys = header.entries
    family = _family(base, keys)
    shape = unet_shape_of_ldm([key.removeprefix(UNET) for key in keys if key.startswith(UNET)])
    unet_names = inverse(unet_modules(shape))
    vae = [key.removeprefix(VAE) for key in keys if key.startswith(VAE)]
    vae_names = inverse(vae_modules(vae_shape_of_ldm(vae)))
    census = Census(family)
    for key, entry in keys.items():
        if key.startswith(UNET):
            ldm = key.removeprefix(UNET)
            ours = translate(ldm, unet_names)
            if ours is not None:
                census.unet(0, entry, ours, ldm, block_of(ldm, shape))
                twin = keys.get(ema_key(key))
                if twin is not None:
                    census.unet(0, twin, ours, ldm, block_of(ldm, shape))
        elif key.startswith(VAE) and translate(key.removeprefix(VAE), vae_names) is not None:
            census.weight(0, entry)
        elif key.startswith(SDXL_TEXT_2):
            census.weight(0, entry)
            for piece in pieces(key.removeprefix(SDXL_TEXT_2)):
                census.text(0, entry, "te2", piece.key, piece.third, piece.transposed)
        else:
            for prefix, network in TEXT_ENCODERS.items():
                if key.startswith(prefix):
                    census.text(0, entry, network, text_module(key.removeprefix(prefix)))
    part = Part(base, "", header, census.weights(0))
    return Base(base, family, False, (part,), census.layers(), census.spellings())


def _family(base: Path, keys: Iterable[str]) -> Family:
    """Raises MergeError where the keys are not a single file's of SD 1.5 or SDXL."""
    names = tuple(keys)

    def holds(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    kind = what_is(names)
    if kind != "a Stable Diffusion checkpoint":
        hint = " Name the pipeline's folder instead." if kind == "a UNet alone" else ""
        raise MergeError(
            f"{base} holds no UNet in the place of a single file's (no key begins with {UNET}): "
            f"it is {kind}, not a single-file Stable Diffusion checkpoint.{hint}"
        )
    if holds("cond_stage_model.model."):
        raise MergeError(f"{base} is an SD 2 checkpoint; only SD 1.5 and SDXL can be merged.")
    if holds("conditioner.embedders.0.model."):
        raise MergeError(
            f"{base} is an SDXL refiner, for which no LoRAs are made. Name the SDXL base."
        )
    # A file of the UNet alone is known by its second embedding.
    return "sdxl" if holds("conditioner.embedders.", f"{UNET}label_emb.") else "sd15"
