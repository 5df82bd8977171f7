"""`urushi reweigh BUILD`: all strengths fitted together, the final files made with them."""

from pathlib import Path

from pipeline.artefacts.gpus import turn
from pipeline.artefacts.locks import locked
from pipeline.artefacts.strength import told
from pipeline.errors import RequestError
from urushi.builds import build_job
from urushi.progress import Terminal
from urushi.run import print_products


def reweigh(build: str, workspace: Path) -> None:
    """Fits the strengths of the merged rounds on the held-out pictures, and finishes anew.

    Raises:
        RequestError: no such build, or a round of it is not finished.
        GateStopped: the gate had ended the build; its files are made anew all the same.
    """
    from pipeline.rounds.finish import finish
    from pipeline.rounds.history import history
    from pipeline.rounds.settle import refit_strengths
    from pipeline.rounds.stage import refit_sentence

    job, progress = build_job(build, workspace), Terminal()
    with locked(job.folder.root), turn(progress.say):
        found = history(job, len(job.recipe.law()))
        if found.missing is not None:
            raise RequestError(f"Round {found.missing} is not finished. `urushi run` goes on.")
        if not found.links:
            raise RequestError(f"No round of {job.recipe.name} was merged: nothing has a strength.")
        made = refit_strengths(job, found, progress, by_hand=True)
        befores = [link.strength for link in found.links]
        for number, before, after in zip(made.rounds, befores, made.final, strict=True):
            print(f"round {number}: {told(before)} -> {told(after)}")
        print(refit_sentence(made))
        finish(job, progress)
    print_products(job)
