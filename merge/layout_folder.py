"""Looks at a diffusers folder, as `save_pretrained` writes it: model_index.json, unet/, vae/, …

A component is one file, or shards with an index; plain, or of one variant such as fp16.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from merge.census import Census
from merge.container import read_header
from merge.errors import MergeError, listed
from merge.families import CONTEXT, CROSS
from merge.keys import block_of, text_module, translate, unet_modules
from merge.layers import Base, Family, Network, Part
from merge.shapes import unet_shape_of_diffusers

COMPONENTS = {
    "unet": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "vae": "diffusion_pytorch_model",
}
"""Folder → how its weight files begin."""

TEXT_ENCODERS: Mapping[str, Network] = {"text_encoder": "te1", "text_encoder_2": "te2"}

WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".pb")
"""What a weight file may end in: other forms of merged weights must not stay beside the new."""

AGAIN = "save the pipeline again with save_pretrained(FOLDER)"


def look_at_folder(base: Path) -> Base:
    """The layers of a pipeline's folder. Raises MergeError as `layout.look` does."""
    if not (base / "model_index.json").is_file():
        raise MergeError(
            f"{base} is a folder without model_index.json: no diffusers pipeline. "
            "Name a .safetensors file, or the folder that save_pretrained wrote."
        )
    found = {name: _files(base / name, stem) for name, stem in COMPONENTS.items()}
    if not found["unet"]:
        raise MergeError(
            f"There is no unet/{COMPONENTS['unet']}.safetensors in {base}, nor shards or a variant "
            f"of it; .bin weights are not read: {AGAIN}."
        )
    headers = {path: read_header(path) for files in found.values() for path in files}
    unet_keys = [key for path in found["unet"] for key in headers[path].entries]
    widths = [
        headers[path].entries[key].shape[-1]
        for path in found["unet"]
        for key in headers[path].entries
        if CROSS.match(key.removesuffix(".weight"))
    ]
    if any(CONTEXT.get(width) == "sd2" for width in widths):
        raise MergeError(f"{base} is an SD 2 pipeline; only SD 1.5 and SDXL can be merged.")
    shape = unet_shape_of_diffusers(unet_keys)
    names = unet_modules(shape)
    second = bool(found["text_encoder_2"]) or "add_embedding.linear_1.weight" in unet_keys
    family: Family = "sdxl" if second else "sd15"
    census = Census(family)
    parts: list[Part] = []
    for component, files in found.items():
        for path in files:
            number = len(parts)
            for key, entry in headers[path].entries.items():
                census.weight(number, entry)
                if component in TEXT_ENCODERS:
                    census.text(number, entry, TEXT_ENCODERS[component], text_module(key))
                elif component == "unet":
                    ldm = translate(key, names)
                    if ldm is not None:
                        census.unet(number, entry, key, ldm, block_of(ldm, shape))
            place = f"{component}/{path.name}"
            parts.append(Part(path, place, headers[path], census.weights(number)))
    return Base(base, family, True, tuple(parts), census.layers(), census.spellings())


def left_out(base: Base, inside: Path) -> bool:
    """Whether a file of a base's folder has no place in the folder of the merge.

    inside: relative to the base. Other forms of the rewritten weights (.bin, variants, stale
    indexes), and weights in the folder's root, would show the unmerged model to a loader that
    prefers them. True also for the rewritten files themselves.
    """
    places = {part.place for part in base.parts}
    rewritten = {Path(place).parent for place in places} | {Path()}
    if inside.parent not in rewritten:
        return False
    if ".index." in inside.name and inside.name.endswith(".json"):
        try:
            shards = _shards(base.path / inside)
        except MergeError:
            return True
        return not {f"{inside.parent.as_posix()}/{name}" for name in shards} <= places
    return inside.name.endswith(WEIGHTS)


def _files(folder: Path, stem: str) -> tuple[Path, ...]:
    """The weight files of one component: none, one, or the shards; the plain form goes first."""
    if not folder.is_dir():
        return ()
    whole, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    variants = [path.name for path in sorted(folder.glob(f"{stem}.*.safetensors"))]
    variants = [name for name in variants if "-of-" not in name]
    variants += [path.name for path in sorted(folder.glob(f"{stem}.safetensors.index.*.json"))]
    for names in ([name for name in (whole, index) if (folder / name).is_file()], variants):
        if len(names) > 1:
            raise MergeError(
                f"{folder} holds several forms of its weights, {listed(names)}, and loaders differ "
                f"in which they take: keep one, or {AGAIN}."
            )
        if names and names[0].endswith(".json"):
            return tuple(folder / name for name in _shards(folder / names[0]))
        if names:
            return (folder / names[0],)
    others = [path.name for path in sorted(folder.iterdir()) if path.name.endswith(WEIGHTS)]
    if others:
        raise MergeError(
            f"{folder} holds no {whole}, nor shards or one variant of it, but {listed(others, 3)}, "
            f"which is not read: {AGAIN}."
        )
    return ()


def _shards(index: Path) -> tuple[str, ...]:
    """The files that an index names. Raises MergeError if it is none."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        shards = tuple(sorted(set(names)))
        named = all(name == Path(name).name for name in shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        named, shards = False, ()
    if not named or not shards:
        raise MergeError(f"{index} is no index of shards. Get it again, or {AGAIN}.")
    return shards
