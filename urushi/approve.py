"""`urushi approve BUILD continue|redo|stop`: a person's answer to the round that waits."""

import getpass
import os
from pathlib import Path

from pipeline.artefacts.decisions import Answer, decide, read_decisions
from pipeline.artefacts.workspace import Workspace
from pipeline.errors import RequestError, UrushiError
from urushi.builds import build_name


def answer(
    build: str, decision: Answer, strength: float | None, lr_scale: float, workspace: Path
) -> None:
    """Writes the answer, and resumes the run that waits for it where Prefect has one.

    Raises:
        RequestError: no such build, none of its rounds waits, or a number is out of range.
    """
    folder = Workspace(workspace.resolve()).build(build_name(build, workspace))
    asked = sorted(folder.root.glob("rounds/*/decisions.json"))
    waiting = [path for path in asked if read_decisions(path).waiting]
    if not waiting:
        raise RequestError(
            f"No round of {folder.root.name} waits for a decision. A recipe asks after each round "
            'with approve = "each round" in [rounds].'
        )
    path = waiting[0]
    decide(path, decision, who=_who(), strength=strength, lr_scale=lr_scale)
    print(f"{folder.root.name}, round {int(path.parent.name)}: {decision}, written to {path}")
    for line in _resumed(folder.root, workspace):
        print(line)


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _resumed(build: Path, workspace: Path) -> list[str]:
    """What became of the run that waits; by hand there is none."""
    from flows.address import known
    from flows.run import has_prefect

    by_hand = "Run the build's command again to go on."
    if not has_prefect() or not (os.environ.get("PREFECT_API_URL") or known(workspace)):
        return [by_hand]
    from flows.address import connect
    from flows.settings import prepare

    prepare(workspace)
    connect(workspace)
    from flows.approval import resume_build

    try:
        names = resume_build(build)
    except UrushiError as error:
        return [f"The answer stands; the run could not be resumed now: {error}"]
    # The doctor may have seen the answer before we asked.
    already = "A scheduled run of it, if there is one, goes on by itself; by hand: "
    return [f"{name}: goes on" for name in names] or [already + by_hand.lower()]
