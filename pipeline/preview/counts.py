"""The data stages' receipts into what each made and how long it took, for the report."""

from dataclasses import dataclass
from typing import Any

from pipeline.artefacts.chain import download_fingerprint
from pipeline.artefacts.job import Job
from pipeline.artefacts.receipts import Receipt, done
from pipeline.models.places import cache_folders
from pipeline.recipe import DatasetRecipe


@dataclass(frozen=True)
class StageCount:
    """What one data stage came to for one dataset."""

    stage: str
    dataset: str
    seconds: float
    made: str
    """Such as "383 images, 4 failures"."""


def data_counts(job: Job) -> tuple[StageCount, ...]:
    """One per stage and dataset, in the order of the data; those not done are left out."""
    return tuple(
        StageCount(stage, dataset.name, receipt.seconds, describe(receipt.summary))
        for _, dataset in job.datasets
        for stage, receipt in _receipts(job, dataset)
        if receipt is not None
    )


def _receipts(job: Job, dataset: DatasetRecipe) -> list[tuple[str, Receipt | None]]:
    images = done(job.dataset_folder(dataset).images, download_fingerprint(dataset))
    if images is None:
        return []
    places = cache_folders(job, dataset)
    texts = done(places.text, places.text_fingerprint) if job.recipe.caches_text else None
    return [
        ("download", images),
        ("caption", done(places.captions, places.captions_fingerprint)),
        ("resize", done(places.resized, places.resized_fingerprint)),
        ("cache", done(places.latents, places.latents_fingerprint)),
        ("cache", texts),
    ]


def describe(summary: dict[str, Any]) -> str:
    """A receipt's whole numbers with their names: "383 images, 4 failures"; zeros are left out."""
    return ", ".join(
        f"{value:,} {name.replace('_', ' ')}"
        for name, value in summary.items()
        if isinstance(value, int) and not isinstance(value, bool) and value
    )
