"""`urushi report BUILD`: report.html again, from the ledger, the receipts and the pictures."""

from pathlib import Path

from pipeline.artefacts.job import load_job
from pipeline.artefacts.ledger import read_ledger
from pipeline.artefacts.locks import locked
from pipeline.artefacts.workspace import Workspace
from urushi.builds import build_name


def rewrite_report(build: str, workspace: Path) -> None:
    """Writes the report of `build`: a name under WORKSPACE/builds, or a build recipe's file.

    Raises:
        RequestError: there is no such build.
        UrushiError: its ledger or the recipe that it was run with is missing or damaged.
    """
    from pipeline.preview.stage import make_report

    folder = Workspace(workspace.resolve()).build(build_name(build, workspace))
    ledger = read_ledger(folder.ledger)
    # As it was run: the recipe that the user edits may have changed since.
    job = load_job(folder.recipe, workspace)
    with locked(folder.root):
        print(make_report(job, ledger))
