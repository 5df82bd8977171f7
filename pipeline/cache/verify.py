"""Shards hashed again and compared with their receipts; the damaged ones lose their proof.

    urushi cache RECIPE --verify

A run of the stage then makes these anew, and no others.
"""

from pathlib import Path

from pipeline.artefacts.identity import digest_file
from pipeline.artefacts.job import Job
from pipeline.artefacts.locks import locked
from pipeline.artefacts.receipts import NAME, Receipt, read_receipt
from pipeline.models.places import cache_folders
from pipeline.progress import Progress
from pipeline.recipe import DatasetRecipe


def verify(job: Job, dataset: DatasetRecipe, progress: Progress) -> list[Path]:
    """Hashes every file of the dataset's latents and texts; returns what is damaged or gone.

    Raises:
        RequestError: there are no pictures yet, or the base is wrong.
    """
    places = cache_folders(job, dataset)
    found: list[Path] = []
    with locked(job.dataset_folder(dataset).root):
        for folder in (places.latents, places.text):
            proofs = [folder / NAME, *sorted(folder.glob("*.receipt.json"))]
            known = [(path, read_receipt(folder, path.name)) for path in proofs if path.exists()]
            files = sum(len(receipt.outputs) for _, receipt in known if receipt)
            with progress.bar(f"verify {folder.name}", files, "files") as bar:
                checked: dict[str, bool] = {}
                for path, receipt in known:
                    bad = damaged(folder, receipt, checked) if receipt else [path]
                    bar.advance(len(receipt.outputs) if receipt else 0)
                    if bad:
                        # The whole's first: without it nothing is read that is damaged.
                        (folder / NAME).unlink(missing_ok=True)
                        path.unlink(missing_ok=True)
                        found += [one for one in bad if one not in found]
    return found


def damaged(folder: Path, receipt: Receipt, checked: dict[str, bool]) -> list[Path]:
    """Files of `receipt` that are not what it says; `checked` remembers what was hashed."""
    bad = []
    for name, output in receipt.outputs.items():
        path = folder / name
        if name not in checked:
            checked[name] = path.is_file() and digest_file(path) == output.blake3
        if not checked[name]:
            bad.append(path)
    return bad
