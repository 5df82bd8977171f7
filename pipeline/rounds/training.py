"""A job and a round's law into what the training room needs: pictures, base, seed, fingerprint."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.artefacts.chain import INDEX_FILE, VERSIONS
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job
from pipeline.artefacts.records import LatentRecord, TextRecord, read_records
from pipeline.models.places import CacheFolders, cache_folders
from pipeline.recipe import RoundLaw
from pipeline.recipe.running import Running
from pipeline.rounds.chain import Link, origin_digest
from pipeline.rounds.split import Split, draw_split, frozen_split
from pipeline.train.counted import seed_of
from pipeline.train.plan import RoundTraining

RETRY_RATE = 0.5
"""A round that did not help is tried once more at this share of its rate, with a new seed."""


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
    usable = _usable(folders.latents, folders.text)
    rounds = recipe.rounds
    split = draw_split(
        dataset.name,
        folders.latents_fingerprint,
        usable,
        rounds.held_out,
        rounds.held_out_timesteps,
        recipe.seed,
    )
    path = job.folder.split
    if dataset.name != job.datasets[0][1].name:
        path = path.with_name(f"heldout-{dataset.name}.json")
    split = frozen_split(path, split)
    return Pictures(folders, split, tuple(md5 for md5 in usable if md5 not in split.md5s))


@lru_cache(maxsize=8)
def _usable(latents: Path, texts: Path) -> tuple[str, ...]:
    """md5s that have a latent and a caption, sorted. A folder's name stands for its contents."""
    first = {r.md5 for r in read_records(latents / INDEX_FILE, LatentRecord)}
    second = {r.md5 for r in read_records(texts / INDEX_FILE, TextRecord)}
    return tuple(sorted(first & second))


def training(
    job: Job, law: RoundLaw, base: tuple[Link, ...], checkpoint: Path | None, attempt: int
) -> RoundTraining:
    """What to train for `attempt` (1 or 2) of a round on top of the merged links `base`."""
    recipe, folder = job.recipe, job.folder.round(law.number)
    seen = pictures(job, law)
    rate = law.learning_rate * RETRY_RATE ** (attempt - 1)
    seed = seed_of(recipe.seed, "round", law.number, "attempt", attempt)
    train = recipe.train.model_dump(mode="json", exclude=set(Running.model_fields))
    settings = {
        "version": VERSIONS["train"],
        "origin": origin_digest(job),
        "base": [[link.blake3, link.strength] for link in base],
        "latents": seen.folders.latents_fingerprint,
        "texts": seen.folders.text_fingerprint,
        "pictures": fingerprint(pictures=list(seen.train)),
        "lora": recipe.lora.model_dump(mode="json"),
        "train": train,
        "seed": seed,
        "round": law.number,
        "learning_rate": rate,
        "epochs": law.epochs,
        "steps": law.steps,
    }
    return RoundTraining(
        folder=folder.train if attempt == 1 else folder.root / "retry",
        fingerprint=fingerprint(stage="train", **settings),
        settings=settings,
        round=law.number,
        seed=seed,
        learning_rate=rate,
        epochs=law.epochs,
        steps=law.steps,
        checkpoint=checkpoint,
        pictures=seen.train,
        latents=seen.folders.latents,
        texts=seen.folders.text,
        stop=job.folder.stop,
        force=job.force,
    )
