"""Old generations of latents and texts off the disk, as `[cache].keep` says, and never silently."""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts.files import files_of, remove
from pipeline.artefacts.receipts import NAME, read_receipt
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.progress import Progress

KINDS = ("latents", "text")
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Generation:
    """One finished cache."""

    folder: Path
    stage: str
    finished_at: float
    """Seconds, by the disk's clock."""


def generations(folder: DatasetFolder) -> list[Generation]:
    """The dataset's finished caches, newest first."""
    found = []
    for place in (folder.root / "cache").glob("*"):
        receipt = read_receipt(place)
        if receipt is not None and receipt.stage in KINDS:
            when = (place / NAME).stat().st_mtime
            found.append(Generation(place, receipt.stage, when))
    return sorted(found, key=lambda one: (-one.finished_at, one.folder.name))


def prune(
    folder: DatasetFolder, keep: int | None, current: Set[Path], progress: Progress
) -> list[Path]:
    """Removes all but the newest `keep` of each kind, `current` ones among them; None keeps all.

    Returns what was removed. Hold the dataset's lock.
    """
    if keep is None:
        return []
    removed = []
    for kind in KINDS:
        # The ones in use count first, whenever they were made.
        ranked = sorted(
            (one for one in generations(folder) if one.stage == kind),
            key=lambda one: one.folder not in current,
        )
        for one in ranked[keep:]:
            if one.folder in current:
                continue
            size = sum(path.stat().st_size for path in files_of(one.folder))
            # Its receipt first: half of a cache must not look whole.
            (one.folder / NAME).unlink()
            remove(one.folder)
            removed.append(one.folder)
            progress.say(
                f"Removed older {kind}: {one.folder} ({size / MEGABYTE:,.0f} MB), "
                f"as [cache].keep = {keep} says"
            )
    return removed
