"""A job and one of its datasets into the folders where latents and texts of it are cached.

The cache writes there and training reads there; both ask here, so that they cannot disagree.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts import chain
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job
from pipeline.artefacts.masks import masks_digest
from pipeline.models.digest import component_digests
from pipeline.models.vae import vae_digest
from pipeline.recipe import DatasetRecipe

EMPTY_CAPTION = ""
"""The md5 under which the empty caption's hidden states are cached."""


@dataclass(frozen=True)
class CacheFolders:
    """Where the shards of one dataset lie, and what they were, or will be, made from."""

    latents: Path
    latents_fingerprint: str
    latents_apart: str
    """`latents_fingerprint` without what masks from files hold: what every shard was made from,
    whichever pictures are in it. Folders that have it in common may share shards."""
    text: Path
    text_fingerprint: str
    resized: Path
    """The folder of the pictures that latents are made of."""
    resized_fingerprint: str
    captions: Path
    """The folder of the captions that texts are made of."""
    captions_fingerprint: str


def cache_folders(job: Job, dataset: DatasetRecipe) -> CacheFolders:
    """The folders for `dataset` under the job's base and bucket ladder; they may not exist yet.

    Raises:
        RequestError: the pictures are not downloaded yet, or the base or [masks] is wrong.
    """
    folder = job.dataset_folder(dataset)
    images = chain.images_receipt(job, dataset)
    digests = component_digests(job.recipe.base, job.workspace.identities)
    resized = chain.resize_fingerprint(job.recipe.resize, images)
    captions = chain.caption_fingerprint(dataset, images, job.workspace.identities)
    vae = vae_digest(job.recipe, job.workspace.identities)
    apart = chain.latents_fingerprint(job.recipe.resize, images, vae, job.recipe.cache)
    latents = apart
    if job.recipe.cache.masks == "files":
        known = job.workspace.identities
        latents = fingerprint(latents=apart, masks=masks_digest(dataset, folder, images, known))
    text = chain.text_fingerprint(captions, digests.text, job.recipe.base)
    return CacheFolders(
        latents=folder.cache(latents),
        latents_fingerprint=latents,
        latents_apart=apart,
        text=folder.cache(text),
        text_fingerprint=text,
        resized=folder.resized(resized),
        resized_fingerprint=resized,
        captions=folder.captions(captions),
        captions_fingerprint=captions,
    )
