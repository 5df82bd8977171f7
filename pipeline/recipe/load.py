"""Recipe files into recipes, with errors that name the key, the file and the remedy."""

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.errors import RecipeError
from pipeline.recipe.build import BuildRecipe
from pipeline.recipe.dataset import DatasetRecipe
from pipeline.recipe.sentences import sentences

Recipe = TypeVar("Recipe", bound=BaseModel)


def load_build(path: Path) -> BuildRecipe:
    """The build recipe in `path`. Raises RecipeError."""
    recipe = load_any(path)
    if isinstance(recipe, BuildRecipe):
        return recipe
    raise RecipeError(f"{path} is a dataset recipe; a build recipe, which has a [base], is meant.")


def load_dataset(path: Path) -> DatasetRecipe:
    """The dataset recipe in `path`. Raises RecipeError."""
    recipe = load_any(path)
    if isinstance(recipe, DatasetRecipe):
        return recipe
    raise RecipeError(f"{path} is a build recipe; a dataset recipe, without a [base], is meant.")


def load_any(path: Path) -> BuildRecipe | DatasetRecipe:
    """Whichever kind `path` holds: a build recipe has a [base]. Raises RecipeError."""
    table = _read(path)
    if "base" in table or "rounds" in table or "round" in table:
        return _validate(BuildRecipe, table, path)
    return _validate(DatasetRecipe, table, path)


def require_valid(recipe: BuildRecipe) -> None:
    """Whether a recipe that was changed after it was read may be one.

    Raises:
        RecipeError: its keys do not go together.
    """
    try:
        BuildRecipe.model_validate(recipe.model_dump())
    except ValidationError as error:
        found = " ".join(sentences(BuildRecipe, error.errors()))
        raise RecipeError(f"{recipe.name} would be no recipe: {found}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe {path}. `urushi new NAME` writes one.") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder. Name the recipe's .toml file in it.") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not a text file; a recipe is TOML in UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.") from None


def _validate(kind: type[Recipe], table: dict[str, Any], path: Path) -> Recipe:
    try:
        return kind.model_validate(table, context={"folder": path.resolve().parent})
    except ValidationError as error:
        found = sentences(kind, error.errors())
        if len(found) == 1:
            raise RecipeError(f"{path}: {found[0]}") from None
        raise RecipeError("\n  ".join([f"{path}:", *found])) from None
