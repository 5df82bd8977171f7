"""`urushi cache RECIPE` with --verify or --why: looks at shards and their receipts."""

from pathlib import Path

from pipeline.artefacts.job import load_job
from pipeline.cache.reasons import reasons
from pipeline.cache.verify import verify
from urushi.progress import Terminal


def print_reasons(recipe: Path, workspace: Path) -> None:
    """What is stale and why. Raises RequestError where there are no pictures yet."""
    job = load_job(recipe, workspace)
    for _, dataset in job.datasets:
        print(dataset.name)
        for line in reasons(job, dataset):
            print(f"  {line}")


def verify_shards(recipe: Path, workspace: Path) -> bool:
    """Hashes every shard; whether all are whole. Raises RequestError as `print_reasons` does."""
    job = load_job(recipe, workspace)
    whole = True
    for _, dataset in job.datasets:
        bad = verify(job, dataset, Terminal())
        whole = whole and not bad
        print(f"{dataset.name}: {len(bad) or 'no'} damaged files")
        for path in bad:
            print(f"  {path}")
    return whole
