"""The optimizer that a recipe names, over groups of parameters that have each their own rate."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from pipeline.errors import RequestError
from pipeline.recipe.optimizers import averages, finds_its_rate, path_of
from pipeline.recipe.train import Train
from pipeline.train.groups import Group

OWN_DEFAULTS: tuple[tuple[str, dict[str, Any]], ...] = (
    # Without these Adafactor sets its own rate and the recipe's is not looked at; and without a
    # first moment it keeps the little memory that it is chosen for.
    (
        "adafactor",
        {"scale_parameter": False, "relative_step": False, "betas": (None, 0.999)},
    ),
)
"""(name, arguments) where a class's own defaults are not what a LoRA wants."""

RESERVED = ("params", "lr", "betas", "weight_decay")
"""What optimizer_args may not hold: the recipe has keys for them."""


def new_optimizer(train: Train, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """The recipe's optimizer over `groups`, fresh: a round never carries an old state over.

    Raises:
        RequestError: it is not installed, does not take an argument that the recipe gives, or
            cannot train groups at rates apart.
    """
    name = train.optimizer
    if finds_its_rate(name) and len({group.learning_rate for group in groups}) > 1:
        rates = ", ".join(f"{group.learning_rate:g}" for group in groups)
        raise RequestError(
            f"[train].optimizer {name} finds one step size for everything that is trained, and "
            f"the recipe asks for rates apart ({rates}). Give all the same rate, or use another "
            "optimizer."
        )
    build = _class(name)
    arguments = _arguments(train, build)
    lists = [{"params": [*g.parameters.values()], "lr": g.learning_rate} for g in groups]
    try:
        optimizer: torch.optim.Optimizer = build(lists, lr=groups[0].learning_rate, **arguments)
    except (TypeError, ValueError, ImportError) as error:
        raise RequestError(
            f"[train].optimizer {name} refuses its arguments ({error}). "
            "Change [train].optimizer_args, betas or weight_decay."
        ) from error
    return optimizer


def try_optimizer(train: Train) -> None:
    """Raises as `new_optimizer` does, so that one hears of it before anything is fetched."""
    new_optimizer(train, [Group({"": nn.Parameter(torch.zeros(2, 2))}, 1.0)])


def _class(name: str) -> Callable[..., Any]:
    module, _, kind = path_of(name).rpartition(".")
    try:
        found = getattr(import_module(module), kind)
    except (ImportError, AttributeError) as error:
        raise RequestError(
            f"[train].optimizer {name} cannot be had: {error}. Install its package, or use "
            "another optimizer."
        ) from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise RequestError(f"[train].optimizer {name} is no class of torch's Optimizer.")
    return found


def _arguments(train: Train, build: Callable[..., Any]) -> dict[str, Any]:
    """What the class is called with, besides parameters and rate."""
    name, taken = train.optimizer, inspect.signature(build).parameters
    own = [key for key, p in taken.items() if p.kind is not p.VAR_KEYWORD]
    arguments = dict(dict(OWN_DEFAULTS).get(name, {}))
    given: tuple[tuple[str, Any], ...]
    given = (("betas", train.betas), ("weight_decay", train.weight_decay))
    for key, value in given:
        if value is not None and key not in own:
            raise RequestError(f"[train].optimizer {name} has no {key}. Take [train].{key} out.")
        if value is not None:
            arguments[key] = value
    betas = taken["betas"].default if "betas" in taken else None
    if train.betas is not None and isinstance(betas, tuple) and len(train.betas) != len(betas):
        raise RequestError(
            f"[train].optimizer {name} has {len(betas)} betas, and [train].betas "
            f"holds {len(train.betas)}."
        )
    free = "." in name and len(own) < len(taken)
    for key, further in train.optimizer_args.items():
        if key in RESERVED:
            raise RequestError(
                f"[train].optimizer_args.{key} is set by the recipe's own keys: use [rounds]."
                "learning_rate, [train].betas and [train].weight_decay."
            )
        if key not in own and not free:
            near = difflib.get_close_matches(key, own, n=1, cutoff=0.5)
            known = ", ".join(k for k in own if k not in RESERVED)
            hint = f"Did you mean {near[0]}?" if near else f"It takes: {known}."
            raise RequestError(
                f"[train].optimizer {name} takes no {key} ([train].optimizer_args). {hint}"
            )
        arguments[key] = further
    needed = [k for k, p in taken.items() if k in own and p.default is p.empty]
    if missing := [k for k in needed if k != "params" and k not in arguments]:
        raise RequestError(
            f"[train].optimizer {name} needs {', '.join(missing)}: set it in "
            "[train].optimizer_args."
        )
    return arguments


@contextmanager
def judged(name: str, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, parameters are what the optimizer `name` wants judged and saved; after it, bit for
    bit what they were.

    A schedule-free optimizer trains at y and is judged at the average x (Defazio et al. 2024,
    arXiv 2405.15682); for every other the two are one. Its own way from x back to y rounds, and so
    whether one had looked would show in what is learned.
    """
    if not averages(name):
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    at_y = [p.detach().clone() for p in parameters]
    modes: Any = optimizer
    modes.eval()
    try:
        yield
    finally:
        modes.train()
        with torch.no_grad():
            for parameter, kept in zip(parameters, at_y, strict=True):
                parameter.copy_(kept)
