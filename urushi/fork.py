"""`urushi fork BUILD --round K NEW`: another build that begins with the first K rounds of this one.

Their LoRAs, losses and strengths are shared, not copied where the disk can link; the checkpoints
are merged again under the new name.
"""

from pathlib import Path

import tomli_w

from pipeline.artefacts.files import files_of, share, write_text
from pipeline.artefacts.job import Job
from pipeline.artefacts.locks import locked
from pipeline.artefacts.workspace import BuildFolder
from pipeline.errors import RequestError
from urushi.builds import build_job
from urushi.new import NAME

NOT_SHARED = {"merge.json", "growth.json", "grid.json", "grid.png"}
"""Products of a checkpoint, which has the build's name in it."""


def fork(build: str, number: int, new: str, workspace: Path, folder: Path) -> Path:
    """Makes the build `new` in the workspace and its recipe in `folder`, whose path is returned.

    Raises:
        RequestError: no such build or round, or `new` is there already or no name.
    """
    job = build_job(build, workspace)
    recipe, target = folder / f"{new}.toml", job.workspace.build(new)
    if not NAME.fullmatch(new):
        raise RequestError(
            f"{new!r} cannot be a name: lower-case letters, digits, _ and -, beginning with a "
            "letter or digit, at most 64."
        )
    for path in (recipe, target.root):
        if path.exists():
            raise RequestError(f"{path} is there already. Choose another name.")
    with locked(job.folder.root):
        _require_round(job, number)
        _share(job.folder, target, number)
    text = job.recipe.model_copy(update={"name": new}).model_dump(mode="json", exclude_none=True)
    write_text(recipe, tomli_w.dumps(text))
    print(f"{target.root}: rounds 1 to {number} of {job.recipe.name}")
    print(
        f"{recipe}: its recipe. What it says of the first {number} rounds must stay; change what "
        "comes after, then `urushi run` it."
    )
    return recipe


def _require_round(job: Job, number: int) -> None:
    from pipeline.rounds.history import history

    rounds = len(job.recipe.law())
    if not 1 <= number <= rounds:
        raise RequestError(f"--round {number}: {job.recipe.name} has rounds 1 to {rounds}.")
    if job.recipe.rounds.envelope == "build":
        raise RequestError(
            f"{job.recipe.name} has one cosine over all its rounds ([rounds].envelope), so that a "
            "build of other rounds shares none with it."
        )
    found = history(job, number)
    if len(found.laid) < number:
        raise RequestError(
            f"Round {len(found.laid) + 1} of {job.recipe.name} is not finished, so round {number} "
            "cannot be forked."
        )


def _share(source: BuildFolder, target: BuildFolder, number: int) -> None:
    for path in sorted(source.root.glob("*.json")):
        if path.name.startswith(("heldout", "anchor", "trials")):
            share(path, target.root / path.name)
    for k in range(1, number + 1):
        place = source.round(k)
        for path in files_of(place.root):
            inside = path.relative_to(place.root)
            drawn = inside.parts[0].startswith("checkpoint") or inside.parts[0] == "samples"
            if not drawn and inside.name not in NOT_SHARED and not inside.name.startswith("."):
                share(path, target.round(k).root / inside)
