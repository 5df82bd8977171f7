"""Reads a mix's recipe: TOML → MixRecipe. Every key is known, every path is beside the recipe.

A recipe names models and steps; a step names models and earlier steps; the last step is written.

    dtype = "float16"                         # optional: of all weights; else as the first model
    vae = "clear"                             # optional: whose VAE is taken as it is

    [models]                                  # paths are relative to this file
    anime = "anime.safetensors"
    photo = "photo.safetensors"
    plain = "sd15.safetensors"
    clear = "vae.safetensors"

    [[step]]
    name = "half"
    sum = ["anime", "photo"]                  # anime · (1 − alpha) + photo · alpha
    alpha = 0.3
    blocks = "IN04-07=0.1,OUT03=1,BASE=0"     # alpha by UNet block; or 25, 26 or SDXL's 20 numbers
    te = 0.5                                  # the text encoders; te1, te2 and vae go apart too

    [[step]]
    name = "final"
    difference = ["half", "photo", "plain"]   # half + alpha · (photo − plain)
    alpha = 0.5

More than two models: sum = ["anime", "photo", "plain"] with weights = [0.5, 0.3, 0.2].
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from merge.errors import MergeError
from merge.mix_recipe import MixRecipe, Step, amount, difference, meant, sum_of_two, weighted

SETTINGS = ("vae", "dtype", "models", "step")
STEP = ("name", "sum", "difference", "alpha", "weights", "blocks", "te", "te1", "te2", "vae")
APART = ("te", "te1", "te2", "vae")


def read_recipe(path: Path) -> MixRecipe:
    """The recipe in a TOML file, checked.

    Raises:
        MergeError: the file is missing or no TOML; a key, a name, a count or a number is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MergeError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    except UnicodeDecodeError:
        raise MergeError(f"{path} is no text: a recipe is a TOML file.") from None
    try:
        return _recipe(tomllib.loads(text), path.parent)
    except tomllib.TOMLDecodeError as error:
        raise MergeError(f"{path} is not TOML: {error}. Correct that line.") from None
    except MergeError as error:
        raise MergeError(f"{path}: {error}") from None


def _recipe(given: Mapping[str, Any], folder: Path) -> MixRecipe:
    _refuse_unknown(given, SETTINGS, "the recipe")
    models = given.get("models", {})
    if not isinstance(models, dict) or not models:
        raise MergeError('There are no [models]. Name each as in: anime = "anime.safetensors".')
    steps = given.get("step", [])
    if not isinstance(steps, list):
        raise MergeError("step is one table; steps are a list: write [[step]].")
    return MixRecipe(
        {name: folder / _text(place, f"models.{name}") for name, place in models.items()},
        tuple(_step(step, number) for number, step in enumerate(steps, 1)),
        vae=_text(given["vae"], "vae") if "vae" in given else None,
        dtype=_text(given["dtype"], "dtype") if "dtype" in given else None,
    )


def _step(given: Any, number: int) -> Step:
    if not isinstance(given, dict):
        raise MergeError(f"Step {number} is no table. Write [[step]] above its lines.")
    name = _text(given.get("name", f"step {number}"), f"name of step {number}")
    where = f"step {name!r}"
    _refuse_unknown(given, STEP, where)
    if ("sum" in given) == ("difference" in given):
        raise MergeError(f"{where} needs one of sum and difference: a list of names.")
    kind = "sum" if "sum" in given else "difference"
    inputs = given[kind]
    if not isinstance(inputs, list) or not all(isinstance(one, str) for one in inputs):
        raise MergeError(f"{kind} of {where} is not a list of names.")
    if kind == "sum" and "weights" in given:
        _refuse_beside_weights(given, where)
        return weighted(name, inputs, _numbers(given["weights"], f"weights of {where}"))
    if len(inputs) != (2 if kind == "sum" else 3):
        raise MergeError(
            f"{where} names {len(inputs)} inputs. A sum by alpha has two (or give weights), "
            "a difference three: first + alpha · (second − third)."
        )
    try:
        share = amount(
            _number(given, "alpha", where),
            _blocks(given.get("blocks"), where),
            **{key: _number(given, key, where) for key in APART},
        )
    except MergeError as error:
        raise MergeError(f"{where}: {error}") from None
    if kind == "sum":
        return sum_of_two(name, inputs[0], inputs[1], share)
    if "weights" in given:
        raise MergeError(f"{where} is a difference: give alpha, not weights.")
    return difference(name, inputs[0], inputs[1], inputs[2], share)


def _refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise MergeError(
                f"{key!r} is no key of {where}{meant(key, known)}. There are {', '.join(known)}."
            )


def _refuse_beside_weights(given: Mapping[str, Any], where: str) -> None:
    beside = [key for key in ("alpha", "blocks", *APART) if key in given]
    if beside:
        raise MergeError(
            f"{where} has weights and {', '.join(beside)}: weights say all. Sum two models by "
            "alpha in a step of their own."
        )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise MergeError(f"{where} is {value!r}, not a text.")
    return value


def _number(given: Mapping[str, Any], key: str, where: str) -> float | None:
    value = given.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MergeError(f"{key} of {where} is {value!r}, not a number.")
    return float(value)


def _numbers(value: Any, where: str) -> list[float]:
    if not isinstance(value, list) or not all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in value
    ):
        raise MergeError(f"{where}: {value!r} is not a list of numbers.")
    return [float(one) for one in value]


def _blocks(value: Any, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return ",".join(map(repr, _numbers(value, f"blocks of {where}")))
