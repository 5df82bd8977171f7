"""The [[datasets]] of a build into what a round is shown beside its own pictures."""

from typing import Any

from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job
from pipeline.models.places import cache_folders
from pipeline.recipe import RoundLaw
from pipeline.rounds.pictures import usable
from pipeline.train.plan import Source


def further_sources(job: Job, law: RoundLaw, apart: frozenset[str]) -> tuple[Source, ...]:
    """Every further dataset but the round's own, without the pictures in `apart`: those that this
    round and the ones before it are judged by, and their kin. What a later round over another
    dataset holds out may be among them: such a round may be added to a finished build.

    Raises:
        RequestError: one of them is not cached yet, or has no pictures.
    """
    found = []
    for one in job.recipe.datasets:
        if one.recipe != law.dataset:
            dataset = job.dataset_of(one.recipe)
            folders = cache_folders(job, dataset)
            md5s = tuple(m for m in usable(job, dataset, folders) if m not in apart)
            paths = folders.latents, folders.captions if law.live else folders.text
            found.append(Source(md5s, *paths, one.repeats, one.weight))
    return tuple(found)


def identities(job: Job, law: RoundLaw, sources: tuple[Source, ...]) -> list[dict[str, Any]]:
    """What a fingerprint of the round holds of `sources`, those that `further_sources` gives."""
    files = [one.recipe for one in job.recipe.datasets if one.recipe != law.dataset]
    rows = []
    for file, source in zip(files, sources, strict=True):
        folders = cache_folders(job, job.dataset_of(file))
        row = {"latents": folders.latents_fingerprint, "texts": folders.text_fingerprint}
        row["pictures"] = fingerprint(pictures=list(source.pictures))
        rows.append({**row, "repeats": source.repeats, "weight": source.weight})
    return rows
