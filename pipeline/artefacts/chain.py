"""The chain of fingerprints: what each product depends on, and so when it must be made again.

A caption rule changes captions and text shards; latents stand. A new VAE changes latents; captions
stand. How fast or from which address pictures are fetched changes nothing.
"""

from pathlib import Path
from typing import Any

from pipeline.artefacts.identity import Identities, digest_bytes, fingerprint
from pipeline.artefacts.job import Job, too_early
from pipeline.artefacts.receipts import Receipt, done
from pipeline.errors import RequestError
from pipeline.recipe import DatasetRecipe
from pipeline.recipe.base import Base
from pipeline.recipe.cache import Cache
from pipeline.recipe.caption import Tagger
from pipeline.recipe.resize import Resize

VERSIONS = {
    "download": 4,
    "caption": 2,
    "tags": 1,
    "resize": 2,
    "latents": 2,
    "text": 2,
    "train": 2,
    "split": 1,
    "rate": 1,
    "strength": 1,
    "merge": 1,
    "refit": 2,
    "baseline": 1,
    "finish": 1,
}
"""Raised when code changes what it makes, so that old products are made again: of the data stages
and of training, and in a build of the held-out draw (split), the trials (rate), the choice of a
round's strength with its gate and its anchor, the merge, the fit of all strengths, the single LoRA
beside the rounds, and the final files."""

TEXT_KEYS = ("clip_skip", "tokens")
"""Keys of [base] that change what text encoders give."""

IMAGES_FILE = "images.jsonl"
TAGGER_FILES = ("model.onnx", "selected_tags.csv")
"""What a WD tagger consists of."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
"""What a tokenizer's folder may hold: the first, or the other two."""
CAPTIONS_FILE = "captions.jsonl"
INDEX_FILE = "index.jsonl"
FAILURES_FILE = "failures.jsonl"
LOOKS_FILE = "looks.jsonl"
"""How each picture looks: LookRecord."""
ALIKE_FILE = "alike.jsonl"
"""Groups of pictures that look alike: Alike."""
FORMERS_FILE = "former_names.jsonl"
"""FormerNames of the pictures' artists; there only if one had another name."""


def download_fingerprint(dataset: DatasetRecipe) -> str:
    """Of the question: site, query, ratings, limit and what is excluded, or the folder; not how it
    is fetched.

    Raises:
        RequestError: a list in [exclude].files cannot be read.
    """
    asked: dict[str, Any] = {}
    if dataset.folder is not None:
        asked = {"folder": str(dataset.folder.path)}
        asked |= dataset.folder.model_dump(include={"most_pixels"}, exclude_defaults=True)
    elif dataset.download is not None:
        asked = dataset.download.model_dump(
            mode="json", include={"site", "tags", "ratings", "limit"}
        )
        asked |= dataset.download.model_dump(
            include={"least_score", "most_pixels"}, exclude_defaults=True
        )
    if excluded := dataset.exclude.model_dump(mode="json", exclude_defaults=True):
        asked["exclude"] = excluded | {"files": [_digest(path) for path in dataset.exclude.files]}
    return fingerprint(stage="download", version=VERSIONS["download"], asked=asked)


def _digest(path: Path) -> str:
    try:
        return digest_bytes(path.read_bytes())
    except OSError as error:
        raise RequestError(
            f"The list {path} of [exclude].files cannot be read: {error.strerror}. Put it there, "
            "or take it out of the recipe."
        ) from error


def images_receipt(job: Job, dataset: DatasetRecipe) -> Receipt:
    """The proof that this dataset's pictures are here; its summary's "pictures" digests their md5s.

    Raises:
        RequestError: they are not yet.
    """
    folder = job.dataset_folder(dataset).images
    receipt = done(folder, download_fingerprint(dataset))
    if receipt is None:
        lacking = f"The pictures of {dataset.name} are not here yet"
        raise too_early(job, lacking, folder, "download")
    return receipt


def tags_fingerprint(tagger: Tagger, images: Receipt, identities: Identities) -> str:
    """Of the tagger's files and of which pictures there are."""
    return fingerprint(
        stage="tags",
        version=VERSIONS["tags"],
        model=tagger_files(tagger, identities),
        pictures=images.summary["pictures"],
    )


def tagger_files(tagger: Tagger, identities: Identities) -> list[str] | str:
    """What the tagger's files hold; of a model from the hub, its id."""
    files = [Path(tagger.model, name) for name in TAGGER_FILES]
    return [identities.of(file) for file in files if file.is_file()] or tagger.model


def tokenizer_files(tokenizer: Path, identities: Identities) -> list[str]:
    """What the files of [caption].tokenizer hold."""
    files = [tokenizer / name for name in TOKENIZER_FILES]
    return [identities.of(file) for file in files if file.is_file()]


def caption_fingerprint(dataset: DatasetRecipe, images: Receipt, identities: Identities) -> str:
    """Of the caption rules, of every fact about the pictures and their artists' names, and of what
    a tagger adds."""
    tagger = dataset.tagger
    tags: dict[str, Any] = {}
    if tagger is not None:
        tags = {
            "tagger": tagger.model_dump(mode="json", exclude={"model", "batch_size"}),
            "tags": tags_fingerprint(tagger, images, identities),
        }
    if FORMERS_FILE in images.outputs:
        tags["former_names"] = images.outputs[FORMERS_FILE].blake3
    tokenizer = dataset.caption.tokenizer
    if tokenizer is not None:
        tags["tokenizer"] = tokenizer_files(tokenizer, identities)
    return fingerprint(
        stage="caption",
        version=VERSIONS["caption"],
        rules=dataset.caption.model_dump(mode="json", exclude={"tokenizer"}),
        images=images.outputs[IMAGES_FILE].blake3,
        **tags,
    )


def resize_fingerprint(resize: Resize, images: Receipt) -> str:
    """Of the bucket ladder and of which pictures there are; tags and scores do not matter."""
    return fingerprint(
        stage="resize",
        version=VERSIONS["resize"],
        # Left out where pictures are kept, as they were before there was a choice.
        ladder=resize.model_dump(mode="json", exclude={"keep"} if resize.keep else None),
        pictures=images.summary["pictures"],
    )


def latent_settings(cache: Cache) -> dict[str, Any]:
    """The keys of [cache] that change latents; others say how they are made."""
    settings = cache.model_dump(mode="json", include={"arithmetic", "mirror", "recolour"})
    # Left out where there are none, as it was before there was a choice.
    return settings | cache.model_dump(include={"masks"}, exclude_none=True)


def latents_fingerprint(resize: Resize, images: Receipt, vae: str, cache: Cache) -> str:
    """Of the pictures on their ladder, the VAE's digest, and what [cache] makes of both; not of how
    or whether resized pictures are stored, as long as that loses nothing."""
    return fingerprint(
        stage="latents",
        version=VERSIONS["latents"],
        resized=resize_fingerprint(resize.as_seen(), images),
        vae=vae,
        **latent_settings(cache),
    )


def text_fingerprint(captions: str, text_encoders: str, base: Base) -> str:
    """Of the captions' fingerprint, the digest of text encoders and tokenizers, and how [base]
    reads them."""
    return fingerprint(
        stage="text",
        version=VERSIONS["text"],
        captions=captions,
        encoders=text_encoders,
        **base.model_dump(mode="json", include=set(TEXT_KEYS)),
    )
