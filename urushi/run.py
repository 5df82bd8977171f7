"""`urushi run` and the stages by hand."""

from dataclasses import replace
from pathlib import Path

from pipeline.artefacts.job import Job, load_job
from pipeline.errors import GateStopped
from pipeline.stages import stage
from urushi.progress import Terminal


def run_all(recipe: Path, workspace: Path, *, force: bool = False) -> None:
    """Everything that `recipe` asks, as Prefect flows in this process.

    Args:
        force: go on with a half-trained round though its recipe was changed.

    Raises:
        UrushiError: whatever stopped it; what was finished stands.
    """
    from flows.run import run_recipe

    job = replace(load_job(recipe, workspace), force=force)
    try:
        run_recipe(job, Terminal())
    except GateStopped:
        # What was merged before stands, and is worth finding.
        print_products(job)
        raise
    print_products(job)


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


def run_stage(name: str, recipe: Path, workspace: Path, *, force: bool = False) -> None:
    """One stage, without Prefect; `force` as in `run_all`."""
    job = replace(load_job(recipe, workspace), force=force)
    outcome = stage(name).run(job, Terminal())
    state = "already done" if outcome.already else "done"
    print(f"{name}: {state}{': ' if outcome.summary else ''}{outcome.summary}")
