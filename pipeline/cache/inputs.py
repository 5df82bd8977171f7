"""What a cache's fingerprint is of, spelled out for its receipt, so that a later look can say why
it is stale."""

from typing import Any

from pipeline.artefacts.chain import (
    IMAGES_FILE,
    TEXT_KEYS,
    VERSIONS,
    images_receipt,
    latent_settings,
    tagger_files,
    tokenizer_files,
)
from pipeline.artefacts.job import Job
from pipeline.artefacts.masks import masks_digest
from pipeline.models.digest import component_digests
from pipeline.models.vae import vae_digest
from pipeline.recipe import DatasetRecipe

TAGGER_PLACES = {"model", "batch_size"}
"""Keys of [tagger] that say where and how, not what."""


def latent_inputs(job: Job, dataset: DatasetRecipe) -> dict[str, Any]:
    """Of the latents of `dataset`."""
    folder, known = job.dataset_folder(dataset), job.workspace.identities
    images = images_receipt(job, dataset)
    masks: dict[str, Any] = {}
    if job.recipe.cache.masks == "files":
        masks["masks"] = masks_digest(dataset, folder, images, known)
    return {
        "stage versions": [VERSIONS["resize"], VERSIONS["latents"]],
        "pictures": images.summary["pictures"],
        "[resize]": job.recipe.resize.as_seen().model_dump(mode="json"),
        "[cache]": latent_settings(job.recipe.cache),
        "VAE": vae_digest(job.recipe, known),
        **masks,
    }


def text_inputs(job: Job, dataset: DatasetRecipe) -> dict[str, Any]:
    """Of the texts of `dataset`."""
    images = images_receipt(job, dataset)
    known = job.workspace.identities
    digests = component_digests(job.recipe.base, known)
    tagger, tokenizer = dataset.tagger, dataset.caption.tokenizer
    return {
        "stage versions": [VERSIONS["caption"], VERSIONS["text"]],
        "posts": images.outputs[IMAGES_FILE].blake3,
        "[caption]": dataset.caption.model_dump(mode="json", exclude={"tokenizer"}),
        "[tagger]": tagger.model_dump(mode="json", exclude=TAGGER_PLACES) if tagger else {},
        # What lies in the folders that those two name counts, and not where they are.
        "tagger": tagger_files(tagger, known) if tagger else None,
        "tokenizer": tokenizer_files(tokenizer, known) if tokenizer else None,
        "[base]": job.recipe.base.model_dump(mode="json", include=set(TEXT_KEYS)),
        "text encoders": digests.text,
    }
