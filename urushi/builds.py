"""Which build a person means: by its name in the workspace, or by its recipe."""

from pathlib import Path

from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.ledger import read_ledger
from pipeline.artefacts.workspace import Workspace
from pipeline.errors import RequestError, UrushiError
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


def build_job(build: str, workspace: Path) -> Job:
    """The job of `build`, a name or a recipe's file.

    A build that is named goes by the recipe that it ran from, or, where that is gone, by the copy
    in its folder.

    Raises:
        RequestError: there is no such build, it has not begun, or the recipe is none of a build.
    """
    name = build_name(build, workspace)
    if build.endswith(".toml"):
        return load_job(Path(build), workspace)
    folder = Workspace(workspace.resolve()).build(name)
    try:
        recipe = Path(read_ledger(folder.ledger).recipe)
    except UrushiError:
        recipe = folder.recipe  # Before its first round is merged there is no ledger.
    if recipe.is_file():
        job = load_job(recipe, workspace)
        if job.build is not None and job.build.name == name:
            return job
    if not folder.recipe.exists():
        raise RequestError(
            f"There is no {folder.recipe}: no round of {name} has begun yet. `urushi run` with its "
            "recipe begins it."
        )
    return load_job(folder.recipe, workspace)
