"""From the tensors of one module of an adapter file, by their headers alone: its form and its size.

A module that is incomplete, or whose tensors do not fit each other, is refused here, before any of
it is read.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from merge.adapter_config import Told
from merge.container import Entry
from merge.errors import MergeError
from merge.lora_modules import NAMES, Form, Module, Shape, canonical

FLOATS = ("F16", "BF16", "F32", "F64")
WHOLE = ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")
"""kohya stores an alpha that was not given, and is the rank, as a whole number."""


def module_of(path: Path, name: str, entries: Mapping[str, Entry], told: Told) -> Module:
    """The module that these tensors make, by part.

    Raises:
        MergeError: a half missing, two forms at once, sizes that do not fit, a dtype of 8 bits.
    """
    return _Parts(path, name, entries).module(told)


class _Parts:
    """The tensors of one module, while it is found out what they are."""

    def __init__(self, path: Path, name: str, entries: Mapping[str, Entry]) -> None:
        self.path, self.name, self.entries = path, name, entries

    def module(self, told: Told) -> Module:
        for part, entry in self.entries.items():
            whole = part == "alpha" and entry.dtype in WHOLE
            if entry.dtype not in FLOATS and not whole:
                raise MergeError(
                    f"{entry.name} in {self.path} has the dtype {entry.dtype}; "
                    f"LoRAs of {', '.join(FLOATS)} can be merged."
                )
        for part in self.entries.keys() & {"alpha", "scalar"}:
            entry = self.entries[part]
            if math.prod(entry.shape) != 1:
                raise MergeError(
                    f"{entry.name} in {self.path} has shape {list(entry.shape)}, not one number."
                )
        form = self._form()
        shape, rank, flat = self._weight(form)
        if None not in (rank, told.rank) and rank != told.rank:
            raise MergeError(
                f"{self.name} in {self.path} has rank {rank}, but the configuration beside it says "
                f"{told.rank}: its alpha is of other tensors. Save the adapter again."
            )
        has_bias = self._bias(shape)
        decomposed = self._magnitude(shape, flat)
        if told.dora and not decomposed:
            self._lacks("lora_magnitude_vector, which use_dora asks for,")
        return Module(
            name=self.name,
            form=f"dora-{form}" if decomposed else form,
            shape=shape,
            rank=rank,
            entries=self.entries,
            has_weight=form != "bias",
            has_bias=has_bias,
            flat=flat,
            told=told,
        )

    def _form(self) -> Form:
        parts = self.entries.keys()
        forms: list[Form] = []
        if parts & {"down", "up", "mid", "up_bias"}:
            forms.append("tucker" if "mid" in parts else "lora")
            self._need("lora_down (lora_A of PEFT's layout)", "down")
            self._need("lora_up (lora_B of PEFT's layout)", "up")
        if any(part.startswith("hada_") for part in parts):
            forms.append("loha")
            for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"):
                self._need(f"{part} of LoHa", part)
            if ("hada_t1" in parts) != ("hada_t2" in parts):
                self._lacks("hada_t1 or hada_t2 of LoHa")
        if any(part.startswith("lokr_") for part in parts):
            forms.append("lokr")
            for side in ("lokr_w1", "lokr_w2"):
                if side not in parts:
                    self._need(f"{side} or {side}_a of LoKr", f"{side}_a")
                    self._need(f"{side} or {side}_b of LoKr", f"{side}_b")
                elif parts & {f"{side}_a", f"{side}_b"}:
                    self._misfit("lokr", "a factor is given twice", side)
            if "lokr_t2" in parts and "lokr_w2" in parts:
                self._misfit("lokr", "a core without its factors", "lokr_t2")
        if "diff" in parts:
            forms.append("diff")
        if parts & {"w_norm", "b_norm"}:
            forms.append("norm" if "w_norm" in parts else "bias")
        if len(forms) > 1:
            raise MergeError(
                f"{self.name} in {self.path} is given twice: as "
                f"{' and as '.join(NAMES[form] for form in forms)}. Which of them is meant?"
            )
        form: Form = forms[0] if forms else "bias"
        if not forms and "diff_b" not in parts:
            self._lacks("lora_down and lora_up, or another form's factors")
        scaled = form not in ("diff", "norm", "bias")
        for part in ("alpha", "scalar", "dora_scale", "magnitude"):
            if part in parts and not scaled:
                raise MergeError(
                    f"{self.entries[part].name} in {self.path} means nothing beside "
                    f"{NAMES[form]}: no program that is known writes that."
                )
        return form

    def _weight(self, form: Form) -> tuple[Shape, int | None, bool]:
        """The delta's shape, the rank, and whether the shape is flat."""
        match form:
            case "lora" | "tucker":
                return self._lora(form)
            case "loha":
                return self._loha()
            case "lokr":
                return self._lokr()
            case "diff":
                shape = self._shape("diff", form, (1, 2, 4))
                return canonical(shape), None, False
            case "norm":
                return canonical(self._shape("w_norm", form, (1,))), None, False
        part = "b_norm" if "b_norm" in self.entries else "diff_b"
        return canonical(self._shape(part, form, (1,))), None, False

    def _lora(self, form: Form) -> tuple[Shape, int, bool]:
        down, up = self._shape("down", form, (2, 4)), self._shape("up", form, (2, 4))
        inner_rank, rank, kernel = down[0], up[1], down[2:]
        fits = up[2:] in ((), (1, 1))
        if form == "tucker":
            mid = self._shape("mid", form, (4,))
            fits = fits and kernel in ((), (1, 1)) and mid[:2] == (rank, inner_rank)
            kernel = mid[2:]
            inner_rank = rank if fits else 0
        if not fits or inner_rank != rank:
            self._misfit(form, "expected (r, in[, k, k]) and (out, r[, 1, 1])", "down", "up", "mid")
        return canonical((up[0], down[1], *kernel)), down[0], False

    def _loha(self) -> tuple[Shape, int, bool]:
        tucker = "hada_t1" in self.entries
        sides = []
        for side in ("1", "2"):
            parts = (f"hada_w{side}_a", f"hada_w{side}_b")
            outer, inner = (self._shape(part, "loha", (2,)) for part in parts)
            if tucker:
                core = self._shape(f"hada_t{side}", "loha", (4,))
                fits = core[:2] == (outer[0], inner[0])
                sides.append((outer[1], inner[1], *core[2:], inner[0]))
            else:
                fits = outer[1] == inner[0]
                sides.append((outer[0], inner[1], 1, 1, inner[0]))
            if not fits:
                self._misfit("loha", "the ranks differ", *parts, f"hada_t{side}")
        if sides[0] != sides[1]:
            self._misfit("loha", "the two products differ in size or rank", *self.entries)
        *shape, rank = sides[0]
        return canonical(tuple(shape)), rank, not tucker

    def _lokr(self) -> tuple[Shape, int | None, bool]:
        ranks = []
        if "lokr_w1" in self.entries:
            left = self._shape("lokr_w1", "lokr", (2, 4))
            if left[2:] not in ((), (1, 1)):
                self._misfit("lokr", "expected (l, m)", "lokr_w1")
        else:
            outer, inner = (self._shape(f"lokr_w1_{part}", "lokr", (2,)) for part in "ab")
            ranks.append(self._equal(outer[1], inner[0], "lokr_w1_a", "lokr_w1_b"))
            left = (outer[0], inner[1])
        if "lokr_w2" in self.entries:
            right = self._shape("lokr_w2", "lokr", (2, 4))
        elif "lokr_t2" in self.entries:
            core = self._shape("lokr_t2", "lokr", (4,))
            outer, inner = (self._shape(f"lokr_w2_{part}", "lokr", (2,)) for part in "ab")
            self._equal(core[0], outer[0], "lokr_t2", "lokr_w2_a")
            ranks.append(self._equal(core[1], inner[0], "lokr_t2", "lokr_w2_b"))
            right = (outer[1], inner[1], *core[2:])
        else:
            outer = self._shape("lokr_w2_a", "lokr", (2,))
            inner = self._shape("lokr_w2_b", "lokr", (2, 4))
            ranks.append(self._equal(outer[1], inner[0], "lokr_w2_a", "lokr_w2_b"))
            right = (outer[0], *inner[1:])
        if len(set(ranks)) > 1:
            # Alpha is divided by the one in some programs, by the other in others.
            self._misfit("lokr", "the two factors have different ranks", *self.entries)
        shape = canonical((left[0] * right[0], left[1] * right[1], *right[2:]))
        return shape, ranks[0] if ranks else None, len(right) == 2

    def _bias(self, shape: Shape) -> bool:
        biases = [part for part in ("diff_b", "b_norm", "up_bias") if part in self.entries]
        if len(biases) > 1:
            self._misfit("bias", "a bias is given twice", *biases)
        if biases and self.entries[biases[0]].shape != shape[:1]:
            self._misfit("bias", f"expected one number for each of {shape[0]} outputs", *biases)
        return bool(biases)

    def _magnitude(self, shape: Shape, flat: bool) -> bool:
        parts = [part for part in ("dora_scale", "magnitude") if part in self.entries]
        if not parts:
            return False
        found = self.entries[parts[0]].shape
        out, inner = shape[:2]
        by_output = [(out,), (out, 1), (out, 1, 1, 1)]
        if parts == ["magnitude"]:
            fits = found in (*by_output, (1, out), (1, out, 1, 1))
        else:
            fits = parts == ["dora_scale"] and found in (*by_output, (1, inner), (1, inner, 1, 1))
            # Of a flat kernel the number of inputs is known only beside the layer: see `fits`.
            columns = found[1] if flat and len(found) == 4 and found[0] == 1 else 0
            fits = fits or (columns > 0 and inner % columns == 0 and found[2:] == (1, 1))
        if not fits:
            name = self.entries[parts[0]].name
            raise MergeError(
                f"{name} in {self.path} has shape {list(found)}, which no DoRA of a layer with "
                f"{out} outputs and {inner} inputs has. Get the file again."
            )
        return True

    def _shape(self, part: str, form: Form, lengths: tuple[int, ...]) -> tuple[int, ...]:
        shape = self.entries[part].shape
        if len(shape) not in lengths or 0 in shape:
            self._misfit(form, f"{part} cannot have this shape", part)
        return shape

    def _equal(self, one: int, two: int, *parts: str) -> int:
        if one != two:
            self._misfit("lokr", "the ranks differ", *parts)
        return one

    def _need(self, what: str, part: str) -> None:
        if part not in self.entries:
            self._lacks(what)

    def _lacks(self, what: str) -> None:
        raise MergeError(
            f"{self.path} lacks {what} for {self.name}: an incomplete LoRA. Get it again."
        )

    def _misfit(self, form: Form, why: str, *parts: str) -> None:
        shapes = {
            part: list(self.entries[part].shape) for part in dict.fromkeys(parts)
            if part in self.entries and part not in ("alpha", "scalar")
        }  # fmt: skip
        shown = ", ".join(f"{part} {shape}" for part, shape in shapes.items())
        raise MergeError(
            f"The parts of {self.name} in {self.path} do not fit each other as {NAMES[form]} "
            f"({why}): {shown}. Get the file again."
        )
