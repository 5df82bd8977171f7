"""Pictures of all the datasets of a build that tell of those that it is judged by.

A split parts no group within its own dataset; another dataset of the build may hold a picture's
rescaled twin, its variant, or more by an artist of few. Those are trained on by no round either.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from pipeline.artefacts.alike import Seen, alike
from pipeline.artefacts.chain import IMAGES_FILE, LOOKS_FILE, images_receipt
from pipeline.artefacts.job import Job
from pipeline.artefacts.records import ImageRecord, LookRecord, read_records
from pipeline.rounds.groups import grouped
from pipeline.size import Size

Noted = tuple[Path, str]
"""A dataset's folder of images and the digest of what is noted there, which changes in place."""


def with_kin(
    job: Job, recipes: Iterable[Path], md5s: frozenset[str], *, whole: bool
) -> frozenset[str]:
    """`md5s`, and of the datasets of `recipes` all pictures that belong together with one of them.

    Args:
        whole: `md5s` are whole groups of their own datasets, as a split has them; an anchor set
            is of single pictures.

    Raises:
        RequestError: one of the datasets is not downloaded yet.
    """
    noted = []
    for recipe in dict.fromkeys(recipes):
        dataset = job.dataset_of(recipe)
        folder = job.dataset_folder(dataset)
        receipt = images_receipt(job, dataset)
        digests = [receipt.outputs[name].blake3 for name in (IMAGES_FILE, LOOKS_FILE)]
        noted.append((folder.images, " ".join(digests)))
    if whole and len(noted) < 2:
        return md5s  # There is no other dataset that could hold more of a group.
    return md5s.union(*(group for group in _across(tuple(noted)) if not md5s.isdisjoint(group)))


@lru_cache(maxsize=4)
def _across(datasets: tuple[Noted, ...]) -> tuple[tuple[str, ...], ...]:
    """All pictures of several datasets, in groups that belong together."""
    records = [read_records(images / IMAGES_FILE, ImageRecord) for images, _ in datasets]
    looks = {
        look.md5: Seen(look.md5, Size(look.width, look.height), look.likeness)
        for images, _ in datasets
        for look in read_records(images / LOOKS_FILE, LookRecord)
    }
    md5s = sorted({record.md5 for each in records for record in each})
    return grouped(records, alike(list(looks.values())), md5s)
