"""Which build a person means: by its name in the workspace, or by its recipe."""

from pathlib import Path

from pipeline.errors import RequestError
from pipeline.recipe import BuildRecipe, load_any


def build_name(build: str, workspace: Path) -> str:
    """The name of `build`: a name under WORKSPACE/builds, or a build recipe's file.

    Raises:
        RequestError: there is no such build, or the recipe is none of a build.
    """
    if build.endswith(".toml"):
        recipe = load_any(Path(build))
        if not isinstance(recipe, BuildRecipe):
            raise RequestError(f"{build} is a dataset recipe; name a build, or its recipe.")
        return recipe.name
    builds = workspace / "builds"
    known = sorted(p.name for p in builds.iterdir()) if builds.is_dir() else []
    if build not in known:
        listed = f"There are: {', '.join(known)}." if known else "There are none yet."
        raise RequestError(f"There is no build {build} in {workspace}. {listed}")
    return build
