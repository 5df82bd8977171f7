"""Which rounds' checkpoints stay on disk, and whether there is room for the next one."""

import shutil
from collections.abc import Sequence

from pipeline.artefacts.files import files_of, remove
from pipeline.artefacts.job import Job
from pipeline.errors import DiskFullError
from pipeline.recipe.rounds import Keep
from pipeline.rounds.history import History

MARGIN = 1.1
"""Of a checkpoint's size: its LoRA, samples and resume points want room too."""
MIB = 1 << 20


def kept(keep: Keep, merged: Sequence[tuple[int, float]], finished: bool) -> frozenset[int]:
    """The rounds whose checkpoints stay. Pure.

    Args:
        merged: (round, held-out loss after it), in order.
        finished: whether the final checkpoint stands; until then the last is trained upon.
    """
    rounds = [number for number, _ in merged]
    if not rounds or keep == "all":
        return frozenset(rounds)
    if isinstance(keep, int) or keep == "last":
        return frozenset(rounds[-(1 if keep == "last" else int(keep)) :])
    needed = set() if finished else {rounds[-1]}
    if keep == "best":
        needed.add(min(merged, key=lambda row: row[1])[0])
    return frozenset(needed)


def kept_rounds(job: Job, history: History, finished: bool) -> frozenset[int]:
    """`kept` of a build's rounds so far."""
    merged = [
        (item.law.number, item.choice.counts.after) for item in history.laid if item.choice.merged
    ]
    return kept(job.recipe.rounds.keep, merged, finished)


def drop_checkpoints(job: Job, history: History, finished: bool) -> None:
    """Removes the merged checkpoints that need not stay; their LoRAs do, so they can be rebuilt."""
    stay = kept_rounds(job, history, finished)
    for link in history.links:
        if link.round not in stay:
            remove(job.folder.round(link.round).checkpoint)


def require_room(job: Job) -> None:
    """Raises DiskFullError where a round's checkpoint would not fit; asked before it is trained."""
    size = sum(path.stat().st_size for path in files_of(job.recipe.base.checkpoint))
    root = job.folder.root
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < MARGIN * size:
        least = job.recipe.rounds.keep in ("last", "none")
        fewer = "" if least else ', or keep fewer of them ([rounds].keep = "last")'
        raise DiskFullError(
            f"{free / MIB:,.0f} MiB are free at {root}, and a round's checkpoint takes "
            f"{MARGIN * size / MIB:,.0f}. Free some{fewer}, and run the same command again."
        )
