"""Decides from headers what becomes of every tensor of a mix: copied from one model, or summed.

The leading model's keys, dtypes and order are the output's. What a model lacks is the leading
model's, and is counted; sizes that differ are refused by name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from merge.arithmetic import DTYPES
from merge.container import BITS, Entry
from merge.errors import MergeError, listed
from merge.keys import EMA, VAE
from merge.mix_models import Model, Plan, evened, plan_of, refuse_other_shapes
from merge.mix_recipe import Apart, MixRecipe
from merge.mix_sums import Program, program_of

MARKERS = ("v_pred", "ztsnr")
"""Tensors without elements that say how a model was trained."""


@dataclass(frozen=True)
class Task:
    """One tensor of the output."""

    entry: Entry
    program: Program
    found: Mapping[str, Entry]
    """Model → its tensor."""

    @property
    def copied(self) -> bool:
        return not self.program.operations and self.source.dtype == self.entry.dtype

    @property
    def source(self) -> Entry:
        """Of a program without operations."""
        return self.found[self.program.result]


class Work:
    """Decides from headers what becomes of every tensor, and counts it."""

    def __init__(self, recipe: MixRecipe, models: Mapping[str, Model], target: str | None) -> None:
        self.leading = models[recipe.leading]
        if self.leading.family is None:
            raise AssertionError("a VAE leads")
        self.family = self.leading.family
        self._recipe, self._models, self._target = recipe, models, target
        self._plan: Plan = plan_of(self.leading)
        self._programs: dict[tuple[Apart, str], Program] = {}
        self.missing: dict[str, list[str]] = {}
        """Model → keys that it should have given and has not."""

    def tasks(self) -> list[Task]:
        """In the leading model's order; a VAE that it has not goes last.

        Raises:
            MergeError: sizes differ, or a dtype is too small to be mixed.
        """
        tasks = [
            self._task(evened(name), entry)
            for name, entry in self.leading.part.header.entries.items()
        ]
        vae = self._recipe.vae
        if vae is not None and not any(key.startswith(VAE) for key in self.leading.keys):
            model = self._models[vae]
            for key, name in model.keys.items():
                if key.startswith(VAE):
                    entry = model.part.header.entries[name]
                    weight = name in model.part.weights
                    tasks.append(
                        Task(
                            self._written(replace(entry, name=key), weight),
                            Program((), vae),
                            {vae: entry},
                        )
                    )
        return tasks

    def _task(self, key: str, entry: Entry) -> Task:
        weight = entry.name in self.leading.part.weights
        written = self._written(entry, weight)
        alone = Task(written, Program((), self.leading.name), {self.leading.name: entry})
        place = self._plan.apart(key)
        if place is None or not weight or entry.dtype.startswith(("I", "U", "BOOL")):
            return alone
        program = self._program(*place)
        # A file without moving averages is its own average.
        keys = (key, self._plan.plain[key]) if key in self._plan.plain else (key,)
        found = {name: self._models[name].find(*keys) for name in program.models}
        there = {name: entry for name, entry in found.items() if entry is not None}
        for name in found:
            if name not in there:
                self._refuse_half_a_vae(name, place[0], key)
                self.missing.setdefault(name, []).append(key)
        if len(there) < len(found):
            return alone
        refuse_other_shapes(key, {self.leading.name: entry, **there}, self._models)
        task = Task(written, program, there)
        if not task.copied:
            self._refuse_dtypes(key, task)
        return task

    def _program(self, network: Apart, block: str) -> Program:
        place = (network, block)
        if place not in self._programs:
            self._programs[place] = program_of(self._recipe, network, block)
        return self._programs[place]

    def _written(self, entry: Entry, weight: bool) -> Entry:
        """The tensor as it will be in the output, in the dtype asked for."""
        if self._target is None or not weight or entry.dtype not in DTYPES:
            return entry
        size = entry.size * 8 // BITS[entry.dtype] * BITS[self._target] // 8
        return replace(entry, dtype=self._target, end=entry.begin + size)

    def _refuse_half_a_vae(self, name: str, network: Apart, key: str) -> None:
        if network == "vae" and name == self._recipe.vae:
            raise MergeError(
                f"{self._models[name].path}, whose VAE is asked for, has no {key}. "
                "Name a file with a whole VAE of this kind."
            )

    def _refuse_dtypes(self, key: str, task: Task) -> None:
        for name, entry in {"": task.entry, **task.found}.items():
            if entry.dtype not in DTYPES:
                path = self._models[name or self.leading.name].path
                raise MergeError(
                    f"{key} in {path} is stored as {entry.dtype}, which is not mixed: its grid is "
                    "too coarse. Take an fp16, bf16 or fp32 form of the model."
                )

    def left_out(self) -> dict[str, tuple[str, ...]]:
        """Model → weights that the leading model has no place for."""
        found = {}
        for name, model in self._models.items():
            if name in self._mixed():
                keys = [
                    key
                    for key, stored in model.keys.items()
                    if stored in model.part.weights
                    and key not in self.leading.keys
                    # The average of a model counts only where the output has one.
                    and not key.startswith(EMA)
                    and not (name == self._recipe.vae and key.startswith(VAE))
                ]
                if keys:
                    found[name] = tuple(keys)
        return found

    def _mixed(self) -> set[str]:
        return {name for step in self._recipe.steps for name in step.inputs}

    def warnings(self) -> Iterator[str]:
        """Sentences for a person."""
        for name, keys in self.missing.items():
            yield (
                f"{self._models[name].path} has no {listed(keys, 3)}: taken from "
                f"{self.leading.path}."
            )
        for name, names in self.left_out().items():
            yield (
                f"{self.leading.path} has no place for {listed(list(names), 3)} of "
                f"{self._models[name].path}: left out."
            )
        for marker in MARKERS:
            mixed = [model for name, model in self._models.items() if name in self._mixed()]
            with_it = [str(model.path) for model in mixed if model.find(marker) is not None]
            if with_it and len(with_it) < len(mixed):
                whose = "has" if self.leading.find(marker) is not None else "lacks"
                yield (
                    f"Only {listed(with_it)} of the models has the marker {marker}: they were "
                    f"trained for different predictions. The output, as {self.leading.path}, "
                    f"{whose} it; look at its pictures."
                )
        for step in self._recipe.steps:
            total = sum(amount.te1 for amount in step.amounts)
            if step.kind == "sum" and abs(total - 1.0) > 1e-6:
                yield (
                    f"The weights of {step.name!r} make {total:g} together, not 1: "
                    "all numbers of its result are larger or smaller by as much."
                )


def same_places(tasks: list[Task], leading: Model) -> bool:
    """Whether every tensor has the bytes' place that it has in the leading model, and no other is
    there."""
    theirs = leading.part.header.entries
    return [(t.entry.name, t.entry.begin, t.entry.end) for t in tasks] == [
        (entry.name, entry.begin, entry.end) for entry in theirs.values()
    ]
