"""Which pictures a round learns from and is judged by."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.artefacts.chain import (
    ALIKE_FILE,
    CAPTIONS_FILE,
    IMAGES_FILE,
    INDEX_FILE,
    images_receipt,
)
from pipeline.artefacts.job import Job, too_early
from pipeline.artefacts.receipts import read_receipt
from pipeline.artefacts.records import (
    Alike,
    CaptionRecord,
    ImageRecord,
    LatentRecord,
    TextRecord,
    read_records,
)
from pipeline.models.places import CacheFolders, cache_folders
from pipeline.recipe import DatasetRecipe, RoundLaw
from pipeline.rounds.groups import grouped
from pipeline.rounds.split import Split, draw_split, frozen_split


@dataclass(frozen=True)
class Pictures:
    """What one round learns from and is judged by."""

    folders: CacheFolders
    split: Split
    train: tuple[str, ...]
    """md5s, sorted; without the held-out ones."""


def pictures(job: Job, law: RoundLaw) -> Pictures:
    """The round's pictures; draws the held-out split of its dataset when it is first asked for.

    Raises:
        RequestError: the dataset is not cached yet, or has too few pictures.
    """
    recipe, dataset = job.recipe, job.dataset_of(law.dataset)
    folders = cache_folders(job, dataset)
    there = usable(job, dataset, folders)
    rounds = recipe.rounds
    noted = images_receipt(job, dataset).outputs[IMAGES_FILE].blake3
    split = _drawn(
        dataset.name,
        folders.latents_fingerprint,
        there,
        rounds.held_out,
        rounds.held_out_timesteps,
        recipe.seed,
        related(job.dataset_folder(dataset).images, noted, there),
    )
    path = job.folder.split
    if dataset.name != job.datasets[0][1].name:
        path = path.with_name(f"heldout-{dataset.name}.json")
    split = frozen_split(path, split)
    return Pictures(folders, split, tuple(md5 for md5 in there if md5 not in split.md5s))


_drawn = lru_cache(maxsize=8)(draw_split)
"""Asked for many times in a build, of the same."""


@lru_cache(maxsize=8)
def related(images: Path, noted: str, md5s: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """`md5s` in groups that must not be parted, from what the download noted of them.

    `noted` is the digest of those notes, which change under one name.
    """
    records = read_records(images / IMAGES_FILE, ImageRecord)
    alike = read_records(images / ALIKE_FILE, Alike)
    return grouped([records], [group.md5s for group in alike], md5s)


def usable(job: Job, dataset: DatasetRecipe, folders: CacheFolders) -> tuple[str, ...]:
    """md5s that have a latent and a caption, sorted.

    Raises:
        RequestError: the dataset is not cached yet, or has no captions where none are cached.
    """
    wanted = [("latents", "cached", folders.latents, folders.latents_fingerprint, "cache")]
    if job.recipe.caches_text:
        wanted.append(("texts", "cached", folders.text, folders.text_fingerprint, "cache"))
    else:
        captions, fingerprint = folders.captions, folders.captions_fingerprint
        wanted.append(("captions", "written", captions, fingerprint, "caption"))
    for what, made, folder, fingerprint, verb in wanted:
        receipt = read_receipt(folder)
        # A folder that was put there by hand may be of another VAE, and train all the same.
        if receipt is None or receipt.fingerprint != fingerprint:
            raise too_early(job, f"The {what} of {dataset.name} are not {made} yet", folder, verb)
    if job.recipe.caches_text:
        return _shared(folders.latents, folders.text / INDEX_FILE, TextRecord)
    return _shared(folders.latents, folders.captions / CAPTIONS_FILE, CaptionRecord)


@lru_cache(maxsize=8)
def _shared(
    latents: Path, texts: Path, kind: type[TextRecord] | type[CaptionRecord]
) -> tuple[str, ...]:
    """Of two files whose folders' names stand for what is in them."""
    first = {r.md5 for r in read_records(latents / INDEX_FILE, LatentRecord)}
    second = {r.md5 for r in read_records(texts, kind)}
    return tuple(sorted(first & second))
