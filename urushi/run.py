"""`urushi run` and the stages by hand."""

from dataclasses import replace
from pathlib import Path

from flows.scale import scaled
from pipeline.artefacts.files import read_json, write_json
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.locks import locked
from pipeline.errors import GateStopped, RequestError
from pipeline.recipe.load import require_valid
from pipeline.recipe.rounds import Round
from pipeline.stages import stage
from urushi.progress import Terminal


def run_all(recipe: Path, workspace: Path, *, force: bool = False, more: int | None = None) -> None:
    """Everything that `recipe` asks, as Prefect flows in this process.

    Args:
        force: go on with a half-trained round though its recipe was changed.
        more: rounds to lay on a finished build, beyond the recipe's and those laid so before.

    Raises:
        UrushiError: whatever stopped it; what was finished stands.
    """
    from flows.run import run_recipe

    if more is not None:
        add_rounds(load_job(recipe, workspace), more)
    job = replace(load_job(recipe, workspace), force=force)
    try:
        run_recipe(job, Terminal())
    except GateStopped:
        # What was merged before stands, and is worth finding.
        print_products(job)
        raise
    print_products(job)


def add_rounds(job: Job, more: int) -> None:
    """Notes in the build's folder that it has `more` rounds than now.

    Raises:
        RequestError: the build is not finished, or a rule ended it that would end it again.
        RecipeError: the recipe does not go with so many rounds.
    """
    from pipeline.rounds.finish import is_finished
    from pipeline.rounds.history import history

    name, laid = job.recipe.name, len(job.recipe.law())
    with locked(job.folder.root):
        found = history(job, laid) if job.folder.ledger.exists() else None
        if found is None or not is_finished(job, found):
            raise RequestError(f"{name} is not finished. `urushi run` it first, without --more.")
        if found.stopped is not None:
            raise RequestError(
                f"{name} stopped after round {found.stopped.round}: {found.stopped.reason}. More "
                "rounds would not be begun. Change what [rounds] says of that first."
            )
        require_valid(
            job.recipe.model_copy(update={"round": (*job.recipe.round, *more * [Round()])})
        )
        before = read_json(job.folder.more)["rounds"] if job.folder.more.exists() else 0
        write_json(job.folder.more, {"rounds": before + more})
    print(f"{name} has {laid + more} rounds now, {more} more than before.")


def print_products(job: Job) -> None:
    """Says where the files are that the job made."""
    if job.build is None:
        for _, dataset in job.datasets:
            print(f"dataset     {job.dataset_folder(dataset).root}")
        return
    folder = job.folder
    for what, path in (
        ("checkpoint", folder.final),
        ("LoRA", folder.final_lora),
        ("ledger", folder.ledger),
        ("report", folder.report),
    ):
        if path.exists():
            print(f"{what:<11} {path}")


def run_stage(
    name: str,
    recipe: Path,
    workspace: Path,
    *,
    force: bool = False,
    workers: int | None = None,
    keep: bool = True,
) -> None:
    """One stage, without Prefect; `force` as in `run_all`; `workers` are processes; without `keep`
    as if [resize].keep were false."""
    job = scaled(replace(load_job(recipe, workspace), force=force), workers)
    if not keep:
        resize = job.recipe.resize.model_copy(update={"keep": False})
        job = replace(job, build=job.recipe.model_copy(update={"resize": resize}))
    outcome = stage(name).run(job, Terminal())
    state = "already done" if outcome.already else "done"
    print(f"{name}: {state}{': ' if outcome.summary else ''}{outcome.summary}")
