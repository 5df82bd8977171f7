"""A recipe's pictures onto this machine: each of its datasets, booru or folder, into images/.

urushi download RECIPE
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.artefacts.chain import download_fingerprint
from pipeline.artefacts.files import translated
from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.locks import locked
from pipeline.artefacts.receipts import Receipt, done
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.patience import Patience
from pipeline.errors import RequestError
from pipeline.progress import Progress
from pipeline.recipe import DatasetRecipe

NAME = "download"
MOST_REASONS = 20
"""Lines of the table; rarer reasons are one line together."""


def run(
    job: Job,
    progress: Progress,
    patience: Patience | None = None,
    *,
    refresh: bool = False,
    retry: bool = False,
) -> Outcome:
    """Downloads what is not here yet. A finished download makes no request at all.

    With `refresh`, the site is asked for newer posts and for what has become of the known ones.
    With `retry`, for every file once more that it did not give or that was no picture; of a folder,
    every picture is looked at again.

    Raises:
        RequestError: no posts, no pictures, or a recipe or workspace that cannot be used.
        UrushiError: the site is down or keeps failing. What was fetched stands.
        DiskFullError: there is no room.
        BusyError: another process works on the dataset.
    """
    already = True
    lines = []
    for _, dataset in job.datasets:
        folder = job.dataset_folder(dataset)
        fresh, receipt = _download(
            dataset, folder, progress, patience or Patience(), refresh, retry
        )
        already = already and not fresh
        lines.append(_sentence(dataset, receipt))
        if fresh:
            _say_table(dataset, receipt, progress)
    return Outcome(NAME, already, "; ".join(lines))


def _download(
    dataset: DatasetRecipe,
    folder: DatasetFolder,
    progress: Progress,
    patience: Patience,
    refresh: bool,
    retry: bool,
) -> tuple[bool, Receipt]:
    """Whether anything had to be done, and the receipt that proves it."""
    asked = download_fingerprint(dataset)
    receipt = done(folder.images, asked)
    if dataset.download is not None:
        if receipt is not None and not (refresh or retry):
            return False, receipt
        from pipeline.download.booru import from_booru, visiting
        from pipeline.download.refresh import refresh as ask_anew

        with (
            translated(folder.root),
            locked(folder.root),
            _decoding(),
            visiting(dataset, folder, progress, patience) as visit,
        ):
            if refresh:
                ask_anew(visit)
            if retry:
                visit.retry()
            return True, from_booru(visit)
    if dataset.folder is None:
        raise RequestError(f"{dataset.name} has neither [download] nor [folder].")
    from pipeline.download.folder import from_folder, look

    # A folder may have changed since, so its listing is compared; that reads no picture.
    listing = look(dataset.folder, dataset.masks.folder if dataset.masks else None)
    same = receipt is not None and receipt.inputs.get("folder") == listing.digest
    if receipt is not None and same and not retry:
        return False, receipt
    with translated(folder.root), locked(folder.root), _decoding():
        return True, from_folder(dataset, listing, folder, progress)


@contextmanager
def _decoding() -> Iterator[None]:
    """Ends the processes that decoded: a build may train for days after this."""
    from pipeline.download.decoders import decoders

    try:
        yield
    finally:
        decoders().close()


def _sentence(dataset: DatasetRecipe, receipt: Receipt) -> str:
    images, failures = receipt.summary["images"], receipt.summary["failures"]
    lost = f", {failures} not to be had" if failures else ""
    return f"{dataset.name}: {images} pictures{lost}"


def _say_table(dataset: DatasetRecipe, receipt: Receipt, progress: Progress) -> None:
    """What was kept, and every reason for not keeping with its count."""
    summary = receipt.summary
    rows = sorted(summary["left"].items(), key=lambda row: (-row[1], row[0]))
    shown = [("kept", summary["images"]), *rows[:MOST_REASONS]]
    if rest := rows[MOST_REASONS:]:
        shown.append((f"{len(rest)} other reasons", sum(count for _, count in rest)))
    width = max(len(f"{count:,}") for _, count in shown)
    progress.say(f"{dataset.name}:")
    for reason, count in shown:
        progress.say(f"  {count:{width},}  {reason}")
    if summary["alike"]:
        progress.say(
            f"  groups that look alike: {summary['alike']:,}, listed in images/alike.jsonl"
        )
