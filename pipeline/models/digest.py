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
from pipeline.models.components import (
    TEXTS,
    UNET,
    VAE,
    Component,
    Family,
    TextComponent,
    components_of,
)
from pipeline.models.configurations import REPOSITORIES, SCHEDULER_FILE, configurations
from pipeline.models.header import Header, read_header
from pipeline.models.inspect import inspect, require_supported
from pipeline.models.layout import is_folder, read_configuration, weights_of
from pipeline.recipe.base import Base

VERSION = 1
"""Raised when what is digested changes, so that remembered digests are forgotten."""

VOLATILE = ("_diffusers_version", "_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Keys of a configuration that say who wrote it, not what it does."""


@dataclass(frozen=True)
class ComponentDigests:
    """BLAKE3, in hexadecimal, of the VAE, of the text encoders with their tokenizers, and of
    all."""

    vae: str
    text: str
    whole: str


def component_digests(base: Base, identities: Identities) -> ComponentDigests:
    """The digests of `base`, remembered while its files keep their sizes, inodes and mtimes.

    Raises:
        RequestError: the base cannot be read or is of a family that is not supported.
    """
    facts = inspect(base)
    require_supported(facts)
    read = _Reading(base, facts.family, configurations(base))
    what = f"components {VERSION} of {base.checkpoint.resolve()} as in {read.folder or read.hub}"
    return ComponentDigests(**identities.remembered(what, read.files(), read.digests))


@dataclass(frozen=True)
class _Reading:
    """A base that is digested. Every byte of its weights is read once."""

    base: Base
    family: Family
    folder: Path | None
    """With its configurations; None: the hub's are meant, whether they are here yet or not."""

    @property
    def hub(self) -> str:
        return REPOSITORIES[self.family]

    def files(self) -> list[Path]:
        """All that is digested."""
        files = list(self._weights())
        if self.folder is not None:
            files += [self.folder / SCHEDULER_FILE]
            files += [f for text in TEXTS[self.family] for f in self._tokenizer_files(text)]
            files += [self.folder / c.folder / "config.json" for c in components_of(self.family)]
        return files

    def digests(self) -> dict[str, str]:
        """The fields of ComponentDigests."""
        rest = self._component(UNET) if is_folder(self.base) else self._everything_else()
        texts = []
        for text in TEXTS[self.family]:
            texts += [self._component(text), self._settings(text), self._tokenizer(text)]
        digests = {
            "vae": fingerprint_of(self._component(VAE), self._settings(VAE)),
            "text": fingerprint_of(*texts),
        }
        schedule = "" if self.folder is None else canonical(self.folder / SCHEDULER_FILE)
        whole = fingerprint_of(*digests.values(), rest, self._settings(UNET), schedule)
        return asdict(ComponentDigests(**digests, whole=whole))

    def _weights(self) -> Iterator[Path]:
        if not is_folder(self.base):
            yield self.base.checkpoint
            return
        for component in components_of(self.family):
            yield from weights_of(self.base.checkpoint, component).files

    def _component(self, component: Component) -> str:
        path = self.base.checkpoint
        if is_folder(self.base):
            files = weights_of(path, component).files
            return fingerprint_of(
                *(tensors_digest(read_header(f), lambda name: True) for f in files)
            )
        return tensors_digest(read_header(path), lambda name: name.startswith(component.prefix))

    def _everything_else(self) -> str:
        """The UNet, and markers and by-catch that a merge keeps."""
        known = tuple(component.prefix for component in (VAE, *TEXTS[self.family]))
        return tensors_digest(
            read_header(self.base.checkpoint), lambda name: not name.startswith(known)
        )

    def _settings(self, component: Component) -> str:
        if self.folder is None:
            return self.hub
        return canonical(self.folder / component.folder / "config.json")

    def _tokenizer_files(self, text: TextComponent) -> list[Path]:
        folder = Path(self.folder or "", text.tokenizer)
        return sorted(f for f in folder.iterdir() if f.suffix in (".json", ".txt"))

    def _tokenizer(self, text: TextComponent) -> str:
        if self.folder is None:
            return self.hub
        files = self._tokenizer_files(text)
        return fingerprint(**{f.name: blake3(f.read_bytes()).hexdigest() for f in files})


def fingerprint_of(*parts: str) -> str:
    """BLAKE3, in hexadecimal, of strings in order."""
    return blake3(json.dumps(parts).encode()).hexdigest()


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


def canonical(configuration: Path) -> str:
    """The digest of what a configuration says, whoever wrote it."""
    table = read_configuration(configuration)
    return fingerprint(**{k: v for k, v in table.items() if k not in VOLATILE})
