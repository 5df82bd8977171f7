"""The data stages' products into what the pictures were: counts, tags, buckets, artists."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from pipeline.artefacts.chain import CAPTIONS_FILE, IMAGES_FILE, download_fingerprint
from pipeline.artefacts.job import Job
from pipeline.artefacts.receipts import done
from pipeline.artefacts.records import CaptionRecord, ImageRecord, read_records
from pipeline.models.places import cache_folders
from pipeline.recipe import DatasetRecipe

MOST_TAGS = 24
FOLDER = "your own folder"

Counts = tuple[tuple[str, int], ...]
"""Names with how many, most first."""


@dataclass(frozen=True)
class DatasetFacts:
    """What one dataset of a build was."""

    name: str
    asked: str
    """The query, or that the pictures lay in a folder; no path."""
    pictures: int
    sites: Counts
    ratings: Counts
    left_out: Counts
    """Reasons for which posts were not taken, the recipe's exclusions among them."""
    excluded: tuple[str, ...]
    """What the recipe's [exclude] names: "2 artists", "1 list"."""
    artists: Counts
    """By their tags."""
    unnamed: int
    """Pictures that bear no artist's tag."""
    tags: Counts
    """The MOST_TAGS that stand in most captions, of `different_tags`."""
    different_tags: int
    lengths: tuple[int, float, int]
    """Tags in a caption: fewest, median, most."""
    quality: Counts
    """Quality words, by how many captions have them."""
    buckets: Counts
    """Sizes that pictures are trained at, "64x64"."""


def dataset_facts(job: Job) -> tuple[DatasetFacts, ...]:
    """One per dataset whose pictures are here, the main one first."""
    found = (_facts(job, dataset) for _, dataset in job.datasets)
    return tuple(facts for facts in found if facts is not None)


def _facts(job: Job, dataset: DatasetRecipe) -> DatasetFacts | None:
    folder = job.dataset_folder(dataset)
    receipt = done(folder.images, download_fingerprint(dataset))
    if receipt is None:
        return None
    images = read_records(folder.images / IMAGES_FILE, ImageRecord)
    artists = Counter(name for image in images for name in image.tags.get("artist", ()))
    said, quality = _captions(job, dataset)
    tags = Counter(tag for caption in said for tag in caption)
    lengths = [len(caption) for caption in said] or [0]
    resized = _resized_summary(job, dataset)
    return DatasetFacts(
        name=dataset.name,
        asked=dataset.download.tags if dataset.download else FOLDER,
        pictures=len(images),
        sites=ranked(Counter(_site(image, dataset) for image in images)),
        ratings=ranked(Counter(image.rating or "not rated" for image in images)),
        left_out=ranked(Counter(receipt.summary.get("left", {}))),
        excluded=_excluded(dataset),
        artists=ranked(artists),
        unnamed=sum(not image.tags.get("artist") for image in images),
        tags=ranked(tags)[:MOST_TAGS],
        different_tags=len(tags),
        lengths=(min(lengths), median(lengths), max(lengths)),
        quality=ranked(quality),
        buckets=ranked(Counter(resized.get("buckets", {}))),
    )


def ranked(counts: Counter[str]) -> Counts:
    """Most first, equals by name."""
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _site(image: ImageRecord, dataset: DatasetRecipe) -> str:
    return image.source.partition(":")[0] if dataset.download else FOLDER


def _captions(job: Job, dataset: DatasetRecipe) -> tuple[list[list[str]], Counter[str]]:
    """The tags of every caption, and how many have which quality word."""
    places = cache_folders(job, dataset)
    receipt = done(places.captions, places.captions_fingerprint)
    if receipt is None:
        return [], Counter()
    records = read_records(places.captions / CAPTIONS_FILE, CaptionRecord)
    said = [list(dict.fromkeys(_tags(record.caption))) for record in records]
    quality = Counter({word: n for word, n in receipt.summary.get("quality", {}).items() if word})
    return said, quality


def _tags(caption: str) -> Iterable[str]:
    return (tag for tag in caption.split(", ") if tag)


def _resized_summary(job: Job, dataset: DatasetRecipe) -> dict[str, dict[str, int]]:
    places = cache_folders(job, dataset)
    receipt = done(places.resized, places.resized_fingerprint)
    return receipt.summary if receipt else {}


def _excluded(dataset: DatasetRecipe) -> tuple[str, ...]:
    named = dataset.exclude.model_dump(exclude_defaults=True)
    return tuple(
        f"{len(items):,} {kind[:-1] if len(items) == 1 else kind}" for kind, items in named.items()
    )
