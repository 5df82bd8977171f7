"""A job: recipes and the workspace they work in. What every stage's `run` takes."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.artefacts.executor import Executor
from pipeline.artefacts.files import read_json
from pipeline.artefacts.workspace import SINGLE_FILE, BuildFolder, DatasetFolder, Workspace
from pipeline.errors import RecipeError, RequestError
from pipeline.recipe import BuildRecipe, DatasetRecipe, load_any, load_dataset
from pipeline.recipe.rounds import Round


@dataclass(frozen=True)
class Outcome:
    """What a stage's run came to. `already` is true where a receipt proved it done before."""

    stage: str
    already: bool
    summary: str


@dataclass(frozen=True)
class Job:
    """A recipe with all that it names. `build` is None for a dataset recipe run by itself."""

    recipe_path: Path
    workspace: Workspace
    build: BuildRecipe | None
    datasets: tuple[tuple[Path, DatasetRecipe], ...]
    """(file, recipe) of every dataset that the build uses, the main one first."""
    force: bool = False
    """Whether a half-trained round goes on though its recipe was changed."""
    executor: Executor | None = None
    """Where shards are resized and cached; None leaves it to the stage."""

    @cached_property
    def recipe(self) -> BuildRecipe:
        """The build recipe.

        Raises:
            RequestError: the job is only a dataset recipe.
        """
        if self.build is None:
            raise RequestError(
                f"{self.recipe_path} is a dataset recipe; this stage needs a build recipe, "
                "which says the base and the resolution."
            )
        return self.build

    @property
    def folder(self) -> BuildFolder:
        suffix = "" if self.recipe.base.checkpoint.is_dir() else SINGLE_FILE
        return self.workspace.build(self.recipe.name, suffix)

    def dataset_folder(self, dataset: DatasetRecipe) -> DatasetFolder:
        return self.workspace.dataset(dataset.name)

    def dataset_of(self, path: Path) -> DatasetRecipe:
        """The dataset recipe that was loaded from `path`."""
        return dict(self.datasets)[path]


def load_job(recipe: Path, workspace: Path) -> Job:
    """Reads `recipe` (of either kind) and every dataset recipe that it names.

    Raises:
        RecipeError: one of them cannot be read, or two datasets share a name.
    """
    loaded = load_any(recipe)
    if isinstance(loaded, DatasetRecipe):
        return Job(recipe, Workspace(workspace.resolve()), None, ((recipe.resolve(), loaded),))
    loaded = _with_more(loaded, Workspace(workspace.resolve()).build(loaded.name))
    named = _named(loaded)
    for path, key in named.items():
        if not path.exists():
            raise RecipeError(
                f"There is no dataset recipe {path}, which {key} in {recipe} names. Paths in a "
                "recipe are meant from its own folder; `urushi new NAME` writes one."
            )
    datasets = tuple((path, load_dataset(path)) for path in named)
    names = [dataset.name for _, dataset in datasets]
    for name in names:
        if names.count(name) > 1:
            files = ", ".join(str(path) for path, dataset in datasets if dataset.name == name)
            raise RequestError(f"Two dataset recipes are named {name}: {files}. Rename one.")
    return Job(recipe, Workspace(workspace.resolve()), loaded, datasets)


def init_lora(job: Job) -> Path | None:
    """The LoRA that round 1 goes on with.

    Raises:
        RequestError: there is none at that place.
    """
    file = job.recipe.lora.init
    if file is not None and not file.exists():
        raise RequestError(
            f"There is no LoRA {file} ([lora].init). A relative path is meant from the recipe's "
            "own folder."
        )
    return file


def _named(recipe: BuildRecipe) -> dict[Path, str]:
    """Every dataset recipe that a build names, the main one first, and the key that names it."""
    named = [(recipe.dataset.recipe, "[dataset].recipe")]
    for number, by_hand in enumerate(recipe.round, 1):
        if by_hand.dataset is not None:
            named.append((by_hand.dataset, f"[[round]] number {number}"))
    for number, further in enumerate(recipe.datasets, 1):
        named.append((further.recipe, f"[[datasets]] number {number}"))
    if recipe.rounds.anchor is not None:
        named.append((recipe.rounds.anchor, "[rounds].anchor"))
    first: dict[Path, str] = {}
    for path, key in named:
        first.setdefault(path, key)
    return first


def _with_more(recipe: BuildRecipe, folder: BuildFolder) -> BuildRecipe:
    """The recipe with the rounds that `urushi run --more` laid on the build."""
    if not folder.more.exists():
        return recipe
    added = (Round(),) * int(read_json(folder.more)["rounds"])
    return recipe.model_copy(update={"round": (*recipe.round, *added)})


def too_early(job: Job, lacking: str, folder: Path, verb: str) -> RequestError:
    """The refusal of a stage that is run by hand before the one that it needs.

    Args:
        lacking: a sentence, as "The pictures of cats are not resized yet".
        folder: where they would be.
        verb: the stage that makes them.
    """
    return RequestError(
        f"{lacking}: nothing in {folder} is finished for this recipe. "
        f"Run `urushi {verb} {job.recipe_path}` first."
    )
