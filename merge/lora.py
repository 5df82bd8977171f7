"""Reads an adapter file of any writer and form, one module at a time, as deltas to be added.

kohya's, LyCORIS', diffusers' and PEFT's files and PEFT's folders: LoRA, Tucker (LoCon), DoRA, LoHa,
LoKr, full differences, norms and biases. Everything else is refused by name. A missing alpha means
alpha = rank.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from merge.adapter_config import CONFIG, WEIGHTS, Told, of_folder, of_metadata
from merge.arithmetic import finite, tensor_of
from merge.container import Entry, Reader, read_header
from merge.delta import Delta
from merge.errors import MergeError, listed
from merge.forms import Decomposed, Difference, Hadamard, Kronecker, LowRank, tucker
from merge.lora_keys import grouped
from merge.lora_modules import NAMES, Module, by_input, canonical
from merge.lora_parts import WHOLE, module_of

__all__ = ["Factors", "LoraFile", "Module", "canonical", "open_loras"]

Writer = Literal["kohya", "diffusers", "peft"]
PEFT = "base_model.model."

THIN = {"down", "up", "alpha", "scalar"}
"""The parts of a module that is no more than two factors."""

EPSILON = torch.finfo(torch.float32).eps
"""LyCORIS adds it to DoRA's norms."""


@dataclass(frozen=True)
class Factors:
    """A plain module's numbers: up (out, r) and down (r, in·h·w), float32, or float64 of F64."""

    up: Tensor
    down: Tensor
    scale: float
    """alpha / rank."""


class LoraFile:
    """An open adapter file: `modules` in the file's order, read one at a time.

    `writer`: whose layout it is. `reader`: for the tensors' bytes as they are.
    """

    def __init__(self, path: Path) -> None:
        """Raises MergeError: unreadable, no LoRA, a form not supported, halves missing."""
        self.path = path
        if path.name == WEIGHTS and not path.is_dir():
            raise MergeError(
                f"{path} is half of an adapter of PEFT's: what it is scaled by is in {CONFIG}. "
                f"Name the folder that holds both, {path.parent}."
            )
        folder = of_folder(path) if path.is_dir() else None
        weights = path / WEIGHTS if folder is not None else path
        header = read_header(weights)
        parts = grouped(path, header.entries)
        configs = of_metadata(path, header.metadata) if folder is None else {}

        def told(name: str) -> Told:
            component, _, module = name.partition(".")
            if folder is not None:
                return folder.of(name.removeprefix(PEFT))
            return configs[component].of(module) if component in configs else Told()

        self.modules = {name: module_of(path, name, p, told(name)) for name, p in parts.items()}
        self.metadata = header.metadata
        self._refuse_lost_scales()
        self.writer: Writer = _writer(list(parts), folder is not None)
        self.reader = Reader(weights, header)

    def delta(self, module: Module, tensor: Literal["weight", "bias"]) -> Delta:
        """What the module adds to the layer's weight or bias.

        Raises:
            MergeError: NaN or infinity in it.
        """
        if tensor == "bias":
            return self._bias(module)
        delta = self._weight(module)
        part = "dora_scale" if "dora_scale" in module.entries else "magnitude"
        if part not in module.entries:
            return delta
        magnitude = self._read(module.entries[part]).reshape(-1)
        epsilon = EPSILON if part == "dora_scale" else 0.0
        return Decomposed(delta, magnitude, by_input(module), epsilon)

    def thin(self, module: Module) -> Factors:
        """The two factors of a plain LoRA module.

        Raises:
            MergeError: it is of another form; NaN or infinity in it.
        """
        self.refuse_unless_thin(module)
        return self._factors(module)

    def is_thin(self, module: Module) -> bool:
        """Whether the module is two factors and no more, so that `thin` gives all of it."""
        return module.form == "lora" and module.entries.keys() <= THIN

    def refuse_unless_thin(self, module: Module) -> None:
        """Raises MergeError, naming the form, unless `is_thin`."""
        if not self.is_thin(module):
            raise MergeError(
                f"{module.name} in {self.path} is {_called(module)}, which has no two factors "
                "that say all of it. Only plain LoRA can be treated so."
            )

    def _refuse_lost_scales(self) -> None:
        """LyCORIS trains a LoKr of two whole factors under rsLoRA with a scale of √dim, but stores
        neither the scale nor dim; every loader, its own too, then takes 1."""
        whole = [m.name for m in self.modules.values() if "lokr" in m.form and m.rank is None]
        try:
            arguments = json.loads(self.metadata.get("ss_network_args", "{}"))
        except (ValueError, RecursionError):
            return
        if whole and isinstance(arguments, dict) and str(arguments.get("rs_lora")) == "True":
            raise MergeError(
                f"{listed(whole, 3)} in {self.path}: a LoKr of two whole factors, trained with "
                "rs_lora, whose scale the file does not hold. It cannot be merged exactly."
            )

    def _weight(self, module: Module) -> Delta:
        form = module.form.removeprefix("dora-")
        if form in ("lora", "tucker"):
            factors = self._factors(module)
            return LowRank(factors.up, factors.down, factors.scale)
        if form == "loha":
            return self._loha(module)
        if form == "lokr":
            return self._lokr(module)
        values = self._part(module, "diff" if form == "diff" else "w_norm")
        return Difference(values.reshape(values.shape[0], -1), 1.0)

    def _factors(self, module: Module) -> Factors:
        up, down, core = self._together(module, "up", "down", "mid")
        up, down = up.reshape(up.shape[0], -1), down.reshape(down.shape[0], -1)
        if core.numel():
            down = tucker(core, down)
        return Factors(up, down, self._scale(module))

    def _loha(self, module: Module) -> Delta:
        sides = []
        for side in ("1", "2"):
            product = f"hada_w{side}"
            up, down, core = self._together(module, f"{product}_a", f"{product}_b", f"hada_t{side}")
            if core.numel():
                up, down = up.T, tucker(core, down)
            sides.append(LowRank(up, down, 1.0))
        return Hadamard(sides[0], sides[1], self._scale(module))

    def _lokr(self, module: Module) -> Delta:
        sides = []
        for side in ("lokr_w1", "lokr_w2"):
            whole, up, down, core = self._together(
                module, side, f"{side}_a", f"{side}_b", side.replace("w", "t")
            )
            if core.numel():
                up, down = up.T, tucker(core, down)
            if not whole.numel():
                whole = up @ down.reshape(down.shape[0], -1)
            sides.append(whole.reshape(whole.shape[0], -1))
        return Kronecker(sides[0], sides[1], self._scale(module))

    def _bias(self, module: Module) -> Delta:
        part = next(p for p in ("diff_b", "b_norm", "up_bias") if p in module.entries)
        # PEFT's bias of lora_B is scaled as the factors are; others are differences.
        scale = self._scale(module) if part == "up_bias" else 1.0
        return Difference(self._part(module, part).reshape(-1, 1), scale)

    def _scale(self, module: Module) -> float:
        scalar = self._number(module, "scalar")
        factor = 1.0 if scalar is None else scalar
        alpha = self._number(module, "alpha")
        if alpha is not None:
            # LyCORIS does not scale a LoKr of two whole factors.
            return factor if module.rank is None else factor * alpha / module.rank
        rank = module.rank or module.told.rank
        return factor if rank is None else factor * module.told.scale(rank)

    def _number(self, module: Module, part: str) -> float | None:
        entry = module.entries.get(part)
        if entry is None:
            return None
        if entry.dtype in WHOLE:
            signed = entry.dtype.startswith("I")
            return float(int.from_bytes(self.reader.read(entry), "little", signed=signed))
        return float(self._read(entry).item())

    def _together(self, module: Module, *parts: str) -> list[Tensor]:
        """The parts in one dtype, the more exact one; without elements where there is none."""
        found = [
            self._part(module, part) if part in module.entries else torch.empty(0) for part in parts
        ]
        exact = torch.float32
        for numbers in found:
            exact = torch.promote_types(exact, numbers.dtype)
        return [numbers.to(exact) for numbers in found]

    def _part(self, module: Module, part: str) -> Tensor:
        return self._read(module.entries[part])

    def _read(self, entry: Entry) -> Tensor:
        stored = tensor_of(self.reader.read(entry), entry.dtype).reshape(entry.shape)
        numbers = stored if stored.dtype == torch.float64 else stored.float()
        if not finite(numbers):
            raise MergeError(
                f"{entry.name} in {self.path} holds NaN or infinity: the training that made it "
                "diverged. Use an earlier LoRA of it."
            )
        return numbers


@contextmanager
def open_loras(paths: Sequence[Path]) -> Iterator[list[LoraFile]]:
    """Opens and checks adapter files, and closes them at the end."""
    with ExitStack() as stack:
        files = []
        for path in paths:
            files.append(LoraFile(path))
            stack.enter_context(files[-1].reader)
        yield files


def _writer(names: Sequence[str], folder: bool) -> Writer:
    if folder or any(name.startswith(PEFT) for name in names):
        return "peft"
    return "diffusers" if any("." in name for name in names) else "kohya"


def _called(module: Module) -> str:
    decomposed = module.form.removeprefix("dora-")
    name = next(name for form, name in NAMES.items() if form == decomposed)
    if decomposed != module.form:
        return f"a DoRA of {name}"
    return f"{name} with a bias" if module.form == "lora" else name
