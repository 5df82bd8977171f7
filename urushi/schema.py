"""`urushi schema`: recipes as JSON Schema, for editors that complete and check TOML."""

import json
from typing import Literal

from pydantic import BaseModel

from pipeline.recipe import BuildRecipe, DatasetRecipe


def print_schema(kind: Literal["dataset", "build"]) -> None:
    """Prints the schema of `kind`; what each key means and its unit are its descriptions."""
    model: type[BaseModel] = DatasetRecipe if kind == "dataset" else BuildRecipe
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | model.model_json_schema()
    print(json.dumps(schema, indent=2, ensure_ascii=False))
