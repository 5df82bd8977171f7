"""A base's components into digests of what they hold: what cached latents and texts are keyed on.

BLAKE3 over each tensor's name, type, shape and bytes, read through a memory map, and over the
component's configuration and tokenizer. Metadata of a file does not count: it changes no latent.
"""

import json
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from blake3 import blake3

from pipeline.artefacts.identity import Identities, fingerprint
from pipeline.models.header import Header, read_header
from pipeline.models.inspect import inspect, require_supported
from pipeline.models.layout import (
    COMPONENTS,
    REPOSITORY,
    SCHEDULER_FILE,
    TEXT,
    TOKENIZER,
    UNET,
    VAE,
    Component,
    configurations,
    is_folder,
    read_configuration,
    weights_of,
)
from pipeline.recipe.base import Base

VERSION = 1
"""Raised when what is digested changes, so that remembered digests are forgotten."""

VOLATILE = ("_diffusers_version", "_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Keys of a configuration that say who wrote it, not what it does."""


@dataclass(frozen=True)
class ComponentDigests:
    """BLAKE3, in hexadecimal, of the VAE, of the text encoder with its tokenizer, and of all."""

    vae: str
    text: str
    whole: str


def component_digests(base: Base, identities: Identities) -> ComponentDigests:
    """The digests of `base`, remembered while its files keep their sizes, inodes and mtimes.

    Raises:
        RequestError: the base cannot be read or is of a family that is not supported.
    """
    require_supported(inspect(base))
    folder = configurations(base)
    files = list(_weights(base))
    if folder is not None:
        files += [folder / SCHEDULER_FILE, *_tokenizer_files(folder)]
        files += [folder / component.folder / "config.json" for component in COMPONENTS]
    what = f"components {VERSION} of {base.checkpoint.resolve()} as in {folder or REPOSITORY}"
    return ComponentDigests(**identities.remembered(what, files, lambda: _digest(base, folder)))


def _weights(base: Base) -> Iterator[Path]:
    if not is_folder(base):
        yield base.checkpoint
        return
    for component in COMPONENTS:
        yield from weights_of(base.checkpoint, component).files


def _digest(base: Base, folder: Path | None) -> dict[str, str]:
    """The fields of ComponentDigests. Every byte of the weights is read once."""
    vae, text = _component(base, VAE), _component(base, TEXT)
    rest = _component(base, UNET) if is_folder(base) else _everything_else(base.checkpoint)
    digests = {
        "vae": fingerprint_of(vae, _settings(folder, VAE)),
        "text": fingerprint_of(text, _settings(folder, TEXT), _tokenizer(folder)),
    }
    schedule = "" if folder is None else _canonical(folder / SCHEDULER_FILE)
    whole = fingerprint_of(*digests.values(), rest, _settings(folder, UNET), schedule)
    return asdict(ComponentDigests(**digests, whole=whole))


def fingerprint_of(*parts: str) -> str:
    """BLAKE3, in hexadecimal, of strings in order."""
    return blake3(json.dumps(parts).encode()).hexdigest()


def _component(base: Base, component: Component) -> str:
    if is_folder(base):
        files = weights_of(base.checkpoint, component).files
        return fingerprint_of(*(tensors_digest(read_header(f), lambda name: True) for f in files))
    return tensors_digest(
        read_header(base.checkpoint), lambda name: name.startswith(component.prefix)
    )


def _everything_else(path: Path) -> str:
    """The UNet, and markers and by-catch that a merge keeps."""
    return tensors_digest(
        read_header(path), lambda name: not name.startswith((VAE.prefix, TEXT.prefix))
    )


def tensors_digest(header: Header, wanted: Callable[[str], bool]) -> str:
    """BLAKE3, in hexadecimal, of the tensors of a file whose names are wanted, in order of name."""
    hasher = blake3(max_threads=blake3.AUTO)
    with _mapped(header.path) as view:
        for name in sorted(header.tensors):
            if wanted(name):
                fact = header.tensors[name]
                hasher.update(json.dumps([name, fact.dtype, fact.shape]).encode() + b"\n")
                with view[fact.start : fact.end] as content:
                    hasher.update(content)
    return hasher.hexdigest()


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    with (
        open(path, "rb") as handle,
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as file,
        memoryview(file) as view,
    ):
        yield view


def _settings(folder: Path | None, component: Component) -> str:
    # The hub's configurations of SD 1.5 are meant, whether they have been fetched yet or not.
    return REPOSITORY if folder is None else _canonical(folder / component.folder / "config.json")


def _canonical(configuration: Path) -> str:
    table = read_configuration(configuration)
    return fingerprint(**{k: v for k, v in table.items() if k not in VOLATILE})


def _tokenizer_files(folder: Path) -> list[Path]:
    return sorted(f for f in (folder / TOKENIZER).iterdir() if f.suffix in (".json", ".txt"))


def _tokenizer(folder: Path | None) -> str:
    if folder is None:
        return REPOSITORY
    return fingerprint(
        **{f.name: blake3(f.read_bytes()).hexdigest() for f in _tokenizer_files(folder)}
    )
