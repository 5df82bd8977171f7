"""New pictures into further rounds: generations of a build, each laid on the final one before.

A build's rounds were trained on the pictures that were there; changing those would mean all rounds
anew. So when enough new pictures have come, the next generation is a build of its own, NAME-2,
NAME-3, …, whose base is the final checkpoint before it and whose few rounds go on at the rate that
the law had come to. Its recipe is a file like any other: WORKSPACE/recipes/NAME/NAME-2.toml.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from pipeline.artefacts.chain import images_receipt
from pipeline.artefacts.files import write_json, write_text
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.records import Record
from pipeline.artefacts.runs import finished, read_run, run_fingerprint, run_root
from pipeline.errors import UrushiError

BORN = "born.json"
LEAST_NEW = 500
"""New pictures that are worth another generation, where nobody says otherwise."""
BY_ROUND = ("epochs", "steps", "strength")
"""Keys of [rounds] with a value for each round, of which the last repeats."""
ROUNDS = 1
"""Of a further generation, where nobody says otherwise."""


class Born(Record):
    """How many pictures a generation began with."""

    pictures: int


def newest(job: Job) -> Job:
    """The last generation of `job`'s build that there is; the build itself where there is none."""
    last = job
    while (path := _recipe(job, number_of(last) + 1)).is_file():
        last = load_job(path, job.workspace.root)
    return last


def job_of(parameters: Mapping[str, Any]) -> Job | None:
    """What a flow run with these parameters works on.

    None for the page of all builds, which is about no recipe, and for recipes that cannot be read.
    """
    if "recipe" not in parameters:
        return None
    try:
        job = load_job(Path(str(parameters["recipe"])), Path(str(parameters["workspace"])))
        # Only a refresh has it, which may be at a later generation of the build.
        return newest(job) if "least_new" in parameters else job
    except UrushiError:
        return None


def number_of(job: Job) -> int:
    """1 for the build itself, 2 for its NAME-2, …"""
    found = re.fullmatch(r".*-(\d+)", job.recipe_path.stem)
    inside = job.recipe_path.parent.parent == job.workspace.root / "recipes"
    return int(found[1]) if found and inside else 1


def pictures(job: Job) -> int:
    """How many pictures the build's main dataset has now.

    Raises:
        RequestError: they are not there.
    """
    dataset = job.datasets[0][1]
    return int(images_receipt(job, dataset).summary["images"])


def begin(job: Job) -> int:
    """How many pictures `job` began with: what is there at the first call, and remembered.

    Call it when its pictures are there and before newer ones are asked for.
    """
    path = run_root(job) / BORN
    if not path.exists():
        write_json(path, Born(pictures=pictures(job)).model_dump())
    return Born.model_validate_json(path.read_bytes()).pictures


def is_done(job: Job) -> bool:
    """Whether the build finished and all of it is still there."""
    return finished(run_root(job), run_fingerprint(job)) is not None


def is_over(job: Job) -> bool:
    """Whether nothing is left to train: it is done, or its gate stopped it after rounds that
    helped."""
    run = read_run(run_root(job))
    stopped = run is not None and run.state == "stopped by the gate"
    same = run is not None and run.fingerprint == run_fingerprint(job)
    return is_done(job) or (stopped and same and job.folder.final.exists())


def next_generation(first: Job, last: Job, rounds: int) -> Job:
    """Writes the recipe of the generation after `last`, and returns its job.

    Args:
        first: the build that the user wrote.
        rounds: how many it has.

    Raises:
        UrushiError: the last one's final checkpoint is gone.
    """
    final = last.folder.final
    if not final.exists():
        raise UrushiError(
            f"{final} is gone; the next generation would start from it. "
            f"`urushi rebuild {last.recipe.name}` makes it again."
        )
    number = number_of(last) + 1
    table: dict[str, Any] = last.recipe.model_dump(mode="json", exclude_none=True)
    table["name"] = f"{first.recipe.name}-{number}"
    table["base"]["checkpoint"] = str(final.resolve())
    # Where the law had come to: these rounds go on, they do not begin anew.
    rate = last.recipe.law()[-1].learning_rate
    table["rounds"] |= {"count": rounds, "learning_rate": "auto" if rate is None else rate}
    for key in BY_ROUND:
        # And at the last of a list's values, where its first belonged to the first round.
        if isinstance(values := table["rounds"].get(key), list):
            table["rounds"][key] = values[-1:]
    table["round"] = []
    path = _recipe(first, number)
    note = "# Written by the flow `refresh`: more rounds on pictures that came later.\n\n"
    write_text(path, note + tomli_w.dumps(table))
    return replace(load_job(path, first.workspace.root), force=last.force)


def _recipe(first: Job, number: int) -> Path:
    name = first.recipe.name
    return first.workspace.root / "recipes" / name / f"{name}-{number}.toml"
