"""What a mix is in one part of a model, and the sum itself: steps → operations → numbers.

    step "half": A · 0.7 + B · 0.3;  step "final": half + 1 · (B − C);  in the VAE, vae = "B"
    program_of(recipe, "unet", "IN04")   half, final of A, B and C
    program_of(recipe, "vae", "")        nothing to do: B as it is

Factors of 0 and 1 are taken at their word, so that what is not mixed keeps its bytes. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from merge.errors import MergeError
from merge.mix_recipe import Apart, MixRecipe, Step


@dataclass(frozen=True)
class Operation:
    """A step as it is in one part of the model: no factor is 0, and no input is its own name."""

    name: str
    kind: Literal["sum", "difference"]
    inputs: tuple[str, ...]
    factors: tuple[float, ...]
    """sum: one for each input. difference: one, on second − third."""


@dataclass(frozen=True)
class Program:
    """Operations in order, of which the last gives `result`; none where a model is the result."""

    operations: tuple[Operation, ...]
    result: str

    @property
    def models(self) -> tuple[str, ...]:
        """Those that are needed, in the order of their first use."""
        if not self.operations:
            return (self.result,)
        made = {operation.name for operation in self.operations}
        used = [name for operation in self.operations for name in operation.inputs]
        return tuple(dict.fromkeys(name for name in used if name not in made))


def program_of(recipe: MixRecipe, network: Apart, block: str) -> Program:
    """What the recipe does to the tensors of a network; `block` tells only for the UNet.

    Raises:
        MergeError: a block has no number, or a step gives no model any weight there.
    """
    if network == "vae" and recipe.vae is not None:
        return Program((), recipe.vae)
    same: dict[str, str] = {}
    operations: dict[str, Operation] = {}
    for step in recipe.steps:
        made = _operation(step, [same.get(name, name) for name in step.inputs], network, block)
        if isinstance(made, str):
            same[step.name] = made
        else:
            operations[step.name] = made
    last = recipe.steps[-1].name
    result = same.get(last, last)
    return Program(tuple(_needed(operations, result)), result)


def _operation(step: Step, inputs: Sequence[str], network: Apart, block: str) -> Operation | str:
    """The step there, or the name of the one input that it passes through unchanged."""
    factors = [amount.at(network, block) for amount in step.amounts]
    if step.kind == "difference":
        if not factors[0] or inputs[1] == inputs[2]:
            return inputs[0]
        return Operation(step.name, "difference", tuple(inputs), tuple(factors))
    terms = [(name, factor) for name, factor in zip(inputs, factors, strict=True) if factor]
    if not terms:
        raise MergeError(
            f"Step {step.name!r} gives no model any weight in {block or network}: "
            "nothing but zeros would be written. Give one of them a weight."
        )
    if len(terms) == 1 and terms[0][1] == 1.0:
        return terms[0][0]
    return Operation(step.name, "sum", tuple(n for n, _ in terms), tuple(f for _, f in terms))


def _needed(operations: Mapping[str, Operation], result: str) -> list[Operation]:
    needed = {result}
    found: list[Operation] = []
    for operation in reversed(list(operations.values())):
        if operation.name in needed:
            found.append(operation)
            needed.update(operation.inputs)
    return found[::-1]


def evaluate(program: Program, models: Mapping[str, Tensor]) -> Tensor:
    """The program's result, from numbers of the models in one float dtype, which are not changed.

    Element by element: each product and each sum is rounded by itself. A fused `add` with alpha
    rounds the two as one, but only where a processor can, and the bytes would tell which it was.
    """
    values = dict(models)
    for operation in program.operations:
        inputs = [values[name] for name in operation.inputs]
        if operation.kind == "difference":
            first, second, third = inputs
            change = second - third
            moved = torch.mul(change, operation.factors[0]).add_(first)
            # Where nothing changes the first stays as it is: -0 + 0 would be +0.
            values[operation.name] = torch.where(change == 0, first, moved)
        else:
            total = torch.mul(inputs[0], operation.factors[0])
            for value, factor in zip(inputs[1:], operation.factors[1:], strict=True):
                total += torch.mul(value, factor)
            values[operation.name] = total
    return values[program.result]
