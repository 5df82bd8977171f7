"""A recipe's pictures onto this machine: each of its datasets, booru or folder, into images/.

urushi download RECIPE
"""

from pipeline.artefacts.chain import download_fingerprint
from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.locks import locked
from pipeline.artefacts.receipts import Receipt, done
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.patience import Patience
from pipeline.errors import RequestError
from pipeline.progress import Progress
from pipeline.recipe import DatasetRecipe

NAME = "download"


def run(job: Job, progress: Progress, patience: Patience | None = None) -> Outcome:
    """Downloads what is not here yet. A finished download makes no request at all.

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
        fresh, receipt = _download(dataset, folder, progress, patience or Patience())
        already = already and not fresh
        lines.append(_sentence(dataset, receipt))
    return Outcome(NAME, already, "; ".join(lines))


def _download(
    dataset: DatasetRecipe, folder: DatasetFolder, progress: Progress, patience: Patience
) -> tuple[bool, Receipt]:
    """Whether anything had to be done, and the receipt that proves it."""
    asked = download_fingerprint(dataset)
    receipt = done(folder.images, asked)
    if dataset.download is not None:
        if receipt is not None:
            return False, receipt
        from pipeline.download.booru import from_booru

        with locked(folder.root):
            return True, from_booru(dataset, dataset.download, folder, progress, patience)
    if dataset.folder is None:
        raise RequestError(f"{dataset.name} has neither [download] nor [folder].")
    from pipeline.download.folder import from_folder, look

    # A folder may have changed since, so its listing is compared; that reads no picture.
    listing = look(dataset.folder)
    if receipt is not None and receipt.inputs.get("folder") == listing.digest:
        return False, receipt
    with locked(folder.root):
        return True, from_folder(dataset, listing, folder, progress)


def _sentence(dataset: DatasetRecipe, receipt: Receipt) -> str:
    images, failures = receipt.summary["images"], receipt.summary["failures"]
    lost = f", {failures} not to be had" if failures else ""
    return f"{dataset.name}: {images} pictures{lost}"
