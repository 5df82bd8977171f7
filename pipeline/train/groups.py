"""What is trained, sorted into groups for the optimizer that have each a rate of their own.

The schedule moves all of them by one factor: each rises to its own peak and falls from it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Group:
    """Parameters that are trained at one rate."""

    parameters: Mapping[str, nn.Parameter]
    """By name."""
    learning_rate: float
    """Peak."""


def by_rate(parameters: Mapping[str, nn.Parameter], rate_of: Callable[[str], float]) -> list[Group]:
    """One group for each peak rate that `rate_of` gives to a name, in the order of their first
    parameters: parameters of one rate are updated together, which is faster."""
    found: dict[float, dict[str, nn.Parameter]] = {}
    for name, parameter in parameters.items():
        found.setdefault(rate_of(name), {})[name] = parameter
    return [Group(together, rate) for rate, together in found.items()]


def order(groups: Sequence[Group]) -> tuple[str, ...]:
    """The names in the order in which an optimizer over `groups` counts its parameters."""
    return tuple(name for group in groups for name in group.parameters)


def moments(state: Mapping[int, Any], was: Sequence[str], now: Sequence[str]) -> dict[int, Any]:
    """An optimizer's state by number, of parameters in the order `was`, renumbered to `now`."""
    numbers = {name: number for number, name in enumerate(now)}
    return {numbers[was[number]]: values for number, values in state.items()}
