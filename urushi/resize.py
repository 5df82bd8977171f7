"""`urushi resize RECIPE --show`: the buckets of a dataset in a table and a picture."""

from pathlib import Path

from pipeline.artefacts.chain import (
    FAILURES_FILE,
    IMAGES_FILE,
    INDEX_FILE,
    images_receipt,
    resize_fingerprint,
)
from pipeline.artefacts.job import load_job
from pipeline.artefacts.receipts import done
from pipeline.artefacts.records import Failure, ImageRecord, ResizedRecord, read_records
from pipeline.resize.histogram import draw_histogram
from pipeline.resize.ladder import ladders
from pipeline.resize.survey import Survey, expected_places, resized_places, survey
from urushi.table import table

HISTOGRAM = "buckets.png"


def print_buckets(recipe: Path, workspace: Path) -> None:
    """Prints buckets, counts and losses of every dataset; a histogram goes beside the pictures.

    Raises:
        RequestError: there are no pictures yet, or [resize] leaves no bucket.
    """
    job = load_job(recipe, workspace)
    rungs = ladders(job.recipe.resize)
    for _, dataset in job.datasets:
        folder = job.dataset_folder(dataset)
        images = images_receipt(job, dataset)
        fingerprint = resize_fingerprint(job.recipe.resize, images)
        resized = folder.resized(fingerprint)
        if done(resized, fingerprint) is not None:
            rows = read_records(resized / INDEX_FILE, ResizedRecord)
            failures = read_records(resized / FAILURES_FILE, Failure)
            found, left_out = resized_places(rows), len(failures)
            kept = job.recipe.resize.keep
            state = "resized" if kept else "placed; no resized pictures are kept"
        else:
            originals = read_records(folder.images / IMAGES_FILE, ImageRecord)
            found, left_out = expected_places(originals, rungs)
            state = "not resized yet; by the sizes that were stated"
        result = survey(found, left_out)
        print(f"{dataset.name} ({state})")
        print(_table(result))
        draw_histogram(result, dataset.name, resized / HISTOGRAM)
        print(f"  {resized / HISTOGRAM}")


def _table(result: Survey) -> str:
    rows = [
        (
            str(one.bucket),
            f"{one.pictures:,}",
            f"{one.pictures / result.pictures:.1%}",
            f"{one.lost:.1%}",
            f"{one.enlarged:,}" if one.enlarged else "-",
        )
        for one in result.buckets
    ]
    rows.append(("all", f"{result.pictures:,}", "", f"{result.lost:.1%}", f"{result.enlarged:,}"))
    text = table(("bucket", "pictures", "share", "cropped", "enlarged"), rows)
    return text + (f"\n  in no bucket: {result.left_out:,}" if result.left_out else "")
