"""Looks at a base (single file or diffusers folder) and says which tensor each LoRA name means.

Only headers are read. A single file keeps SD 1.5's ldm keys; a folder is what `save_pretrained`
writes: model_index.json, unet/, text_encoder/, ... each with a file of its own.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from merge.container import Entry, Header, read_header
from merge.errors import MergeError
from merge.keys import (
    KOHYA_TEXT,
    KOHYA_UNET,
    TEXT,
    TEXT_MODEL,
    UNET,
    VAE,
    ema_key,
    inverse,
    kohya,
    text_module,
    translate,
    unet_modules,
    vae_modules,
)
from merge.shapes import unet_shape_of_diffusers, unet_shape_of_ldm, vae_shape_of_ldm

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
TEXT_FILE = "text_encoder/model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".pb")
"""What a weight file may end in: other forms of merged weights must not stay beside the new."""


@dataclass(frozen=True)
class Part:
    """One weight file of a base."""

    path: Path
    place: str
    """Where it is inside a diffusers folder; empty for a single file."""
    header: Header
    targets: dict[str, tuple[str, ...]]
    """LoRA module name → the keys that its delta is added to: the weight, and its EMA copy."""
    weights: frozenset[str]
    """Keys known to be model weights: checked for NaN, and cast if a dtype is asked for."""

    def label(self, key: str) -> str:
        return f"{self.place}:{key}" if self.place else key


def look(base: Path) -> tuple[Part, ...]:
    """The weight files that a merge into `base` rewrites or checks.

    Raises:
        MergeError: missing, unreadable, SDXL, a LoRA, or without a UNet of Stable Diffusion's kind.
    """
    if base.is_dir():
        return _look_at_folder(base)
    if not base.exists():
        raise MergeError(f"There is no base checkpoint at {base}. Check the path.")
    header = read_header(base)
    keys = header.entries
    if any(key.startswith("conditioner.embedders.") for key in keys):
        raise MergeError(f"{base} is an SDXL checkpoint; this version merges SD 1.5 only.")
    unet = [key.removeprefix(UNET) for key in keys if key.startswith(UNET)]
    if not unet:
        kind = "a LoRA" if any(key.startswith("lora_") for key in keys) else "something else"
        raise MergeError(
            f"{base} holds no UNet (no key begins with {UNET}): it is {kind}, "
            "not a single-file Stable Diffusion checkpoint."
        )
    found = _Targets()
    unet_names = inverse(unet_modules(unet_shape_of_ldm(unet)))
    vae = [key.removeprefix(VAE) for key in keys if key.startswith(VAE)]
    vae_names = inverse(vae_modules(vae_shape_of_ldm(vae)))
    for key, entry in keys.items():
        if key.startswith(UNET):
            module = translate(key.removeprefix(UNET), unet_names)
            if module is not None:
                twin = ema_key(key)
                found.add(entry, (KOHYA_UNET,), module, [key] + [twin] * (twin in keys))
        elif key.startswith(TEXT):
            found.add(entry, KOHYA_TEXT, text_module(key.removeprefix(TEXT)), [key])
        elif key.startswith(VAE) and translate(key.removeprefix(VAE), vae_names) is not None:
            found.weights.add(key)
    return (Part(base, "", header, dict(found.targets), frozenset(found.weights)),)


def _look_at_folder(base: Path) -> tuple[Part, ...]:
    if not (base / "model_index.json").is_file():
        raise MergeError(
            f"{base} is a folder without model_index.json: no diffusers pipeline. "
            "Name a .safetensors file, or the folder that save_pretrained wrote."
        )
    if (base / "text_encoder_2").exists():
        raise MergeError(f"{base} is an SDXL pipeline; this version merges SD 1.5 only.")
    if not (base / UNET_FILE).is_file():
        raise MergeError(
            f"There is no {UNET_FILE} in {base}. Sharded, fp16-variant and .bin weights are not "
            "read: save the pipeline again with save_pretrained(FOLDER, max_shard_size='20GB')."
        )
    parts = []
    for place in (UNET_FILE, TEXT_FILE, VAE_FILE):
        path = base / place
        if not path.is_file():
            continue
        header = read_header(path)
        found = _Targets()
        if place == UNET_FILE:
            names = unet_modules(unet_shape_of_diffusers(header.entries))
            known = {ours: ours for ours in names}
            for key, entry in header.entries.items():
                module = translate(key, known)
                if module is not None:
                    found.add(entry, (KOHYA_UNET,), module, [key])
        elif place == TEXT_FILE:
            for key, entry in header.entries.items():
                found.add(entry, KOHYA_TEXT, text_module(key), [key])
        else:
            found.weights.update(header.entries)
        parts.append(Part(path, place, header, dict(found.targets), frozenset(found.weights)))
    return tuple(parts)


class _Targets:
    """Collects what LoRA names mean, and which keys are weights."""

    def __init__(self) -> None:
        self.targets: dict[str, tuple[str, ...]] = defaultdict(tuple)
        self.weights: set[str] = set()

    def add(self, entry: Entry, prefixes: tuple[str, ...], key: str, places: list[str]) -> None:
        """`key`: the tensor in diffusers' names; `places`: the file's keys that hold it."""
        self.weights.update(places)
        # Norms have one axis. An embedding has two, but its LoRA is another thing than a matrix's.
        if (
            not key.endswith(".weight")
            or len(entry.shape) not in (2, 4)
            or key.startswith(TEXT_MODEL + "embeddings.")
        ):
            return
        for prefix in prefixes:
            self.targets[kohya(prefix, key.removesuffix(".weight"))] += tuple(places)
