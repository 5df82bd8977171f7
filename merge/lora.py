"""Reads a kohya-format LoRA file: modules of two factors and an alpha, everything else refused.

Per module NAME: NAME.lora_down.weight (r, in[, k, k]), NAME.lora_up.weight (out, r[, 1, 1]) and
NAME.alpha (one number; missing means alpha = r). The delta is alpha / r · up · down.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from merge.arithmetic import tensor_of
from merge.container import Entry, Header, Reader, read_header
from merge.errors import MergeError, listed

FLOATS = ("F16", "BF16", "F32", "F64")

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"

UNSUPPORTED = (
    (r"\.lora_mid\.", "Tucker decomposition"),
    (r"\.dora_scale$", "DoRA"),
    (r"\.hada_", "LoHa"),
    (r"\.lokr_", "LoKr"),
    (r"\.oft_", "OFT"),
    (r"\.diff(_b)?$", "full differences"),
    (r"\.(w|b)_norm$", "norm layers"),
    (r"\.lora_[AB]\.", "the diffusers/PEFT layout"),
    (r"_lora\.(down|up)\.", "the old diffusers layout"),
    (r"^bundle_emb\.", "a bundled embedding"),
)
"""How keys of forms that cannot be merged here look, and what the form is called."""


@dataclass(frozen=True)
class Module:
    """One adapted layer of a LoRA file, checked for shape but not yet read."""

    name: str
    down: Entry
    up: Entry
    alpha: Entry | None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The delta as (out, in, height, width); a linear layer has a kernel of 1 × 1."""
        return canonical((self.up.shape[0], *self.down.shape[1:]))


@dataclass(frozen=True)
class Factors:
    """A module's numbers: up (out, r) and down (r, in·h·w), float32 unless the file is F64."""

    up: Tensor
    down: Tensor
    scale: float
    """alpha / rank."""


def canonical(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """(out, in) and (out, in, 1, 1) are the same layer to a LoRA: both as (out, in, h, w)."""
    out, inner, *kernel = shape
    height, width = kernel or (1, 1)
    return out, inner, height, width


class LoraFile:
    """An open LoRA file: `modules` in the file's order, factors read one module at a time."""

    def __init__(self, path: Path) -> None:
        """Raises MergeError: unreadable, no LoRA, a form not supported, halves missing."""
        self.path = path
        header = read_header(path)
        self.modules = _modules(path, header)
        self.metadata = header.metadata
        self.reader = Reader(path, header)

    def factors(self, module: Module) -> Factors:
        """Raises MergeError: NaN or infinity in a factor or in alpha."""
        up = self._read(module.up).reshape(module.up.shape[0], module.rank)
        down = self._read(module.down).reshape(module.rank, -1)
        alpha = float(module.rank)
        if module.alpha is not None:
            alpha = float(self._read(module.alpha).item())
        return Factors(up, down, alpha / module.rank)

    def _read(self, entry: Entry) -> Tensor:
        stored = tensor_of(self.reader.read(entry), entry.dtype).reshape(entry.shape)
        numbers = stored if stored.dtype == torch.float64 else stored.float()
        if not bool(torch.isfinite(numbers).all()):
            raise MergeError(
                f"{entry.name} in {self.path} holds NaN or infinity: the training that made it "
                "diverged. Use an earlier LoRA of it."
            )
        return numbers


@contextmanager
def open_loras(paths: Sequence[Path]) -> Iterator[list[LoraFile]]:
    """Opens and checks LoRA files, and closes them at the end."""
    with ExitStack() as stack:
        files = []
        for path in paths:
            files.append(LoraFile(path))
            stack.enter_context(files[-1].reader)
        yield files


def _modules(path: Path, header: Header) -> dict[str, Module]:
    grouped: dict[str, dict[str, Entry]] = defaultdict(dict)
    odd: list[str] = []
    for key, entry in header.entries.items():
        name, _, part = key.partition(".")
        if part in (DOWN, UP, ALPHA):
            grouped[name][part] = entry
        else:
            odd.append(key)
    if odd:
        _refuse_odd(path, odd, bool(grouped))
    if not grouped:
        raise MergeError(f"{path} holds no LoRA modules.")
    halves = [name for name, parts in grouped.items() if not {DOWN, UP} <= parts.keys()]
    if halves:
        raise MergeError(
            f"{path} lacks {DOWN} or {UP} for {listed(halves)}: an incomplete LoRA. Get it again."
        )
    return {name: _module(path, name, parts) for name, parts in grouped.items()}


def _refuse_odd(path: Path, odd: list[str], some_lora: bool) -> None:
    kinds = {meaning for key in odd for pattern, meaning in UNSUPPORTED if re.search(pattern, key)}
    if kinds:
        raise MergeError(
            f"{path} uses {' and '.join(sorted(kinds))} ({listed(odd, 4)}), which cannot be merged "
            "exactly here. Only kohya's lora_down / lora_up / alpha can."
        )
    if some_lora:
        raise MergeError(f"{path} holds keys that no LoRA of kohya's has: {listed(odd, 4)}.")
    raise MergeError(
        f"{path} is not a LoRA in kohya's layout: it holds {listed(odd, 3)}. "
        "Is it a checkpoint, given in the place of a LoRA?"
    )


def _module(path: Path, name: str, parts: dict[str, Entry]) -> Module:
    down, up, alpha = parts[DOWN], parts[UP], parts.get(ALPHA)
    for entry in (down, up, alpha):
        if entry is not None and entry.dtype not in FLOATS:
            raise MergeError(
                f"{entry.name} in {path} has the dtype {entry.dtype}; "
                f"LoRAs of {', '.join(FLOATS)} can be merged."
            )
    if alpha is not None and math.prod(alpha.shape) != 1:
        raise MergeError(f"{alpha.name} in {path} has shape {list(alpha.shape)}, not one number.")
    fits = (
        len(down.shape) in (2, 4)
        and len(up.shape) in (2, 4)
        and all(n > 0 for n in (*down.shape, *up.shape))
        and down.shape[0] == up.shape[1]
        and up.shape[2:] in ((), (1, 1))
    )
    if not fits:
        raise MergeError(
            f"The halves of {name} in {path} do not fit each other: down {list(down.shape)}, "
            f"up {list(up.shape)}; expected (r, in[, k, k]) and (out, r[, 1, 1])."
        )
    return Module(name, down, up, alpha)
