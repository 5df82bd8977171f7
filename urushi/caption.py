"""`urushi caption RECIPE` with --diff, --explain, --stats or --export: looks at captions."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pipeline.artefacts.chain import images_receipt
from pipeline.artefacts.job import Job, load_job, too_early
from pipeline.artefacts.locks import locked
from pipeline.artefacts.records import ImageRecord
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.caption.difference import difference, last_captions
from pipeline.caption.export import export_pairs
from pipeline.caption.rules import Rules, write_caption
from pipeline.caption.stage import images_and_rules, write_all
from pipeline.caption.statistics import MOST, statistics
from pipeline.errors import RequestError
from pipeline.recipe import DatasetRecipe
from urushi.progress import Terminal
from urushi.table import table

EXAMPLES = 5
SHORTEST = 4
"""Digits of an md5 that --explain wants at least."""


def _datasets(
    job: Job,
) -> Iterator[tuple[DatasetRecipe, DatasetFolder, list[ImageRecord], Rules]]:
    for _, dataset in job.datasets:
        folder = job.dataset_folder(dataset)
        found = images_receipt(job, dataset)
        with locked(folder.root):
            images, rules = images_and_rules(
                dataset, folder, found, job.workspace.identities, Terminal()
            )
        yield dataset, folder, images, rules


def print_difference(recipe: Path, workspace: Path) -> None:
    """What the recipe's rules would change in the captions written last.

    Raises:
        RequestError: there are no pictures or no captions yet.
    """
    job = load_job(recipe, workspace)
    for dataset, folder, images, rules in _datasets(job):
        before = last_captions(folder)
        if before is None:
            lacking = f"{dataset.name} has no captions yet to compare with"
            raise too_early(job, lacking, folder.root / "captions", "caption")
        written = write_all(dataset.name, images, rules, Terminal())
        found = difference(before, (one.record for one in written))
        print(f"{dataset.name}: {len(found.changed):,} of {found.captions:,} captions change")
        _print_counts("now said", found.added)
        _print_counts("no longer said", found.removed)
        for changed in found.changed[:EXAMPLES]:
            print(f"  {changed.md5}\n    - {changed.before}\n    + {changed.after}")


def print_explanation(recipe: Path, md5: str, workspace: Path) -> None:
    """Every rule's effect on the pictures whose md5 begins so.

    Raises:
        RequestError: there is none, or too little of the md5 is given.
    """
    if len(md5) < SHORTEST:
        raise RequestError(f"--explain {md5!r} is too short: give {SHORTEST} digits or more.")
    found = False
    for dataset, _, images, rules in _datasets(load_job(recipe, workspace)):
        for image in images:
            if image.md5.startswith(md5.lower()):
                found = True
                print(f"{dataset.name} {image.md5} ({image.source})")
                print("\n".join(_explained(image, rules)))
    if not found:
        raise RequestError(f"No picture of {recipe} has an md5 that begins with {md5}.")


def _explained(image: ImageRecord, rules: Rules) -> Iterator[str]:
    for category, tags in image.tags.items():
        yield f"  {category}: {', '.join(tags)}"
    written = write_caption(image, rules)
    rows = [(c.tag, c.what, c.reason) for c in written.changes]
    if rows:
        yield table(("tag", "became", "why"), rows)
    score = "none" if image.score is None else f"{image.score}"
    if image.score is not None and written.record.score is None:
        score += " (too young to be used)"
    yield f"  score {score}: {written.word or 'no word'}"
    yield f"  caption: {written.record.caption}"


def print_statistics(recipe: Path, workspace: Path) -> None:
    """Tag counts, lengths, near-synonyms and what is dropped most."""
    for dataset, _, images, rules in _datasets(load_job(recipe, workspace)):
        found = statistics(write_all(dataset.name, images, rules, Terminal()))
        fewest, median, most = found.lengths
        print(
            f"{dataset.name}: {found.captions:,} captions of {fewest} to {most} tags, "
            f"median {median:g}; {len(found.tags):,} different tags"
        )
        _print_counts("said most", found.tags)
        _print_counts("dropped most", found.dropped, lambda key: f"{key[0]} ({key[1]})")
        if found.near_synonyms:
            print("  share a word and stand together (rename or collapse one):")
            rows = [(*n.tags, f"{n.pictures:,}", f"{n.share:.0%}") for n in found.near_synonyms]
            print(table(("tag", "with", "pictures", "of the first's"), rows))


def export_captions(recipe: Path, form: str, out: Path, workspace: Path) -> None:
    """Pairs of picture and text in `out`, a folder for each dataset where there are several.

    Raises:
        RequestError: the form is not one that is known, or `out` cannot be written.
    """
    if form != "kohya":
        raise RequestError(f"--export {form!r} is not a form that is known. Use kohya.")
    job = load_job(recipe, workspace)
    for dataset, folder, images, rules in _datasets(job):
        place = out / dataset.name if len(job.datasets) > 1 else out
        written = write_all(dataset.name, images, rules, Terminal())
        count = export_pairs(folder, images, (one.record for one in written), place, Terminal())
        print(f"{dataset.name}: {count:,} pictures with captions in {place}")


Key = TypeVar("Key")


def _print_counts(what: str, counts: Counter[Key], spelled: Callable[[Key], str] = str) -> None:
    shown: Iterable[tuple[Key, int]] = counts.most_common(MOST)
    words = ", ".join(f"{spelled(key)} {count:,}" for key, count in shown)
    if words:
        more = f" and {len(counts) - MOST:,} more" if len(counts) > MOST else ""
        print(f"  {what}: {words}{more}")
