"""What a build wrote, as it wrote it: a file that was changed by hand since is named."""

from pathlib import Path

from pipeline.artefacts.job import Job
from pipeline.artefacts.receipts import Receipt, done, read_receipt
from pipeline.errors import UrushiError


def untouched(job: Job, folder: Path, wanted: str, name: str, remedy: str) -> Receipt | None:
    """The receipt `name` in `folder` if it proves the fingerprint `wanted`, as `done` has it.

    `done` looks at sizes alone.

    Args:
        remedy: what else can be done than putting the file back: a clause.

    Raises:
        UrushiError: a file that the receipt names holds other bytes.
    """
    receipt = read_receipt(folder, name)
    if receipt is None or receipt.fingerprint != wanted:
        return None
    require_untouched(job, folder, receipt, remedy)
    return done(folder, wanted, name)


def forget(folder: Path, wanted: str, name: str) -> None:
    """Takes away a receipt of something else: it would speak for files that change now.

    Call it before the first of them is written. Where the recipe is put back later, the receipt
    would be the right one again, and the files another's.
    """
    receipt = read_receipt(folder, name)
    if receipt is not None and receipt.fingerprint != wanted:
        (folder / name).unlink()


def require_untouched(job: Job, folder: Path, receipt: Receipt, remedy: str) -> None:
    """Raises UrushiError where a file that the receipt names holds other bytes, as above.

    Digests are remembered, so that a file is read once after it was written; one that is missing is
    no fault: it is made again where it is needed.
    """
    for relative, output in receipt.outputs.items():
        path = folder / relative
        if path.is_file() and (found := job.workspace.identities.of(path)) != output.blake3:
            raise UrushiError(
                f"{path} is not what the build wrote: its BLAKE3 is {found}, and was "
                f"{output.blake3}. Put it back, or {remedy}."
            )
