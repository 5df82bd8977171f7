"""The stages in the order in which data flows: what the front door and the flows walk through."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from pipeline.artefacts.gpus import turn
from pipeline.artefacts.job import Job, Outcome
from pipeline.progress import Progress


@dataclass(frozen=True)
class Stage:
    """One stage: its name is the verb, the room, the receipt and the task."""

    name: str
    section: str
    """The recipe section that it obeys."""
    reads: str
    writes: str
    entry: str
    """Dotted path of its run(job, progress) -> Outcome, imported when it is called."""
    needs_build: bool = True
    """Whether it needs a build recipe, or a dataset recipe will do."""
    computes: bool = False
    """Whether it runs a network on the GPU, for which it waits its turn."""

    def run(self, job: Job, progress: Progress) -> Outcome:
        module, function = self.entry.split(":")
        run: Callable[[Job, Progress], Outcome] = getattr(import_module(module), function)
        if not self.computes:
            return run(job, progress)
        with turn(progress.say):
            return run(job, progress)


DATA_STAGES = (
    Stage(
        "download",
        "download",
        "a booru query or a folder",
        "originals, posts.sqlite, images",
        "pipeline.download.stage:run",
        needs_build=False,
    ),
    Stage(
        "caption",
        "caption",
        "images",
        "captions",
        "pipeline.caption.stage:run",
        needs_build=False,
    ),
    Stage("resize", "resize", "images", "bucketed pictures", "pipeline.resize.stage:run"),
    Stage(
        "cache",
        "cache",
        "bucketed pictures, captions",
        "latent and text shards",
        "pipeline.cache.stage:run",
        computes=True,
    ),
)
BUILD_STAGES = (
    Stage(
        "train",
        "train",
        "shards, a checkpoint",
        "a round's LoRA",
        "pipeline.rounds.stage:train",
        computes=True,
    ),
    Stage(
        "preview",
        "preview",
        "checkpoints",
        "grids and the report",
        "pipeline.preview.stage:run",
        computes=True,
    ),
)
STAGES = DATA_STAGES + BUILD_STAGES


def stage(name: str) -> Stage:
    """The stage called `name`; KeyError for one that is not."""
    return {s.name: s for s in STAGES}[name]
