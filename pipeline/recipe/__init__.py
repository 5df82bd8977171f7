"""TOML into typed, frozen, validated recipes: what the pictures are, and what is done with them.

    from pipeline.recipe import load_build, load_dataset

Raises RecipeError, which names key, file and remedy.
"""

from pipeline.recipe.build import BuildRecipe
from pipeline.recipe.dataset import DatasetRecipe
from pipeline.recipe.load import load_any, load_build, load_dataset
from pipeline.recipe.rounds import RoundLaw

__all__ = [
    "BuildRecipe",
    "DatasetRecipe",
    "RoundLaw",
    "load_any",
    "load_build",
    "load_dataset",
]
