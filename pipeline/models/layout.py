"""How a base lies on disk: a single file, or a diffusers folder with weights by component."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RequestError
from pipeline.models.components import Component
from pipeline.recipe.base import Base


@dataclass(frozen=True)
class Weights:
    """The safetensors files of one component in a diffusers folder, and their variant ("fp16")."""

    files: tuple[Path, ...]
    variant: str | None


def is_folder(base: Base) -> bool:
    """Whether the base is a diffusers folder rather than a single file."""
    return base.checkpoint.is_dir()


def read_configuration(path: Path) -> dict[str, Any]:
    """A component's configuration. Raises RequestError where `path` is not a JSON object."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(table, dict):
        raise RequestError(f"{path} is not a configuration: it holds no JSON object.")
    return table


def weights_of(folder: Path, component: Component) -> Weights:
    """The weights of `component` in a diffusers folder: whole or in shards, full or fp16.

    Raises:
        RequestError: there are none in safetensors, or a shard is missing.
    """
    place = folder / component.folder
    for variant in (None, "fp16"):
        dotted = f".{variant}" if variant else ""
        whole = place / f"{component.weights}{dotted}.safetensors"
        if whole.is_file():
            return Weights((whole,), variant)
        index = place / f"{component.weights}.safetensors.index{dotted}.json"
        if index.is_file():
            names = read_configuration(index).get("weight_map", {}).values()
            files = tuple(place / name for name in sorted(set(names)))
            for file in files:
                if not file.is_file():
                    raise RequestError(f"{file} is missing, which {index} names. Copy it again.")
            if files:
                return Weights(files, variant)
    pickled = any(place.glob("*.bin"))
    remedy = "Convert its pickled .bin file to safetensors." if pickled else "Copy it again."
    raise RequestError(
        f"{place} has no weights of the {component.title} "
        f"({component.weights}.safetensors). {remedy}"
    )
