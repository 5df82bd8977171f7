"""The chain: which LoRAs at which strengths make checkpoint k, and its file on disk.

Checkpoint_k = cast(origin + sum of strength_i x delta_i): always from the origin, one cast at the
end. Merging into the previous round's 16-bit file would lose exactly the late, low-rate rounds.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import merge
from pipeline.artefacts.chain import VERSIONS
from pipeline.artefacts.files import files_of, write_text
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job
from pipeline.artefacts.receipts import Receipt, read_receipt, write_receipt
from pipeline.artefacts.strength import Strength
from pipeline.progress import Progress
from pipeline.rounds.growth import measure, summed_up
from pipeline.rounds.untouched import forget, require_untouched, untouched

RECEIPT = "merge.json"
AGAIN = "delete it: it is merged again, to the same bytes"


@dataclass(frozen=True)
class Link:
    """One merged round."""

    round: int
    lora: Path
    blake3: str
    strength: Strength

    @property
    def addend(self) -> merge.Addend:
        """For a merge."""
        return merge.Addend(self.lora, merged_at(self.strength))


def merged_at(strength: Strength) -> float | merge.Strength:
    """In merge's words."""
    if isinstance(strength, tuple):
        unet, text = strength
        return merge.Strength(unet, text, text)
    return strength


def merge_fingerprint(job: Job, links: tuple[Link, ...]) -> str:
    """Of the origin and of every LoRA and strength in order."""
    return fingerprint(
        stage="merge",
        version=VERSIONS["merge"],
        origin=origin_digest(job),
        chain=[[link.blake3, link.strength] for link in links],
    )


def origin_digest(job: Job) -> str:
    """BLAKE3 of the origin checkpoint."""
    return job.workspace.identities.of(job.recipe.base.checkpoint)


def lay(job: Job, links: tuple[Link, ...], progress: Progress) -> Receipt:
    """Makes the checkpoint of the last link's round, or finds it there; returns its receipt.

    The receipt's summary has the checkpoint's sha256, the share of the last delta that the cast
    hides, the norm of all deltas over that of the weights they change, how many layers those are,
    and what `growth` sums up.

    Raises:
        UrushiError: the checkpoint was changed by hand.
    """
    folder = job.folder.round(links[-1].round)
    wanted = merge_fingerprint(job, links)
    receipt = untouched(job, folder.root, wanted, RECEIPT, AGAIN)
    if receipt is not None:
        return receipt
    started = time.monotonic()
    forget(folder.root, wanted, RECEIPT)
    with progress.bar(f"merge {links[-1].round}", 1, "checkpoint") as bar:
        report = write_checkpoint(job, links, folder.checkpoint)
        bar.advance()
    grown = measure(
        job.recipe.base.checkpoint,
        [(x.round, x.lora, merged_at(x.strength)) for x in links],
        report,
    )
    write_text(folder.growth, grown.model_dump_json(indent=1) + "\n")
    return write_receipt(
        folder.root,
        "merge",
        wanted,
        inputs={"rounds": [[link.round, link.strength] for link in links]},
        outputs=[*files_of(folder.checkpoint), folder.growth],
        summary={
            **summed_up(grown),
            "sha256": sha256(folder.checkpoint),
            "cast_loss": report.cast_loss,
            "drift": report.relative,
            "layers": len(report.matched),
        },
        seconds=time.monotonic() - started,
        name=RECEIPT,
    )


@dataclass(frozen=True)
class Origin:
    """What a build's chain starts from."""

    build: str
    checkpoint: Path
    blake3: str


def write_checkpoint(job: Job, links: tuple[Link, ...], out: Path) -> merge.MergeReport:
    """Merges the chain into the job's origin."""
    origin = Origin(job.recipe.name, job.recipe.base.checkpoint, origin_digest(job))
    return write_chain(origin, links, out)


def write_chain(
    origin: Origin,
    links: tuple[Link, ...],
    out: Path,
    on_tensor: Callable[[int, int], None] | None = None,
) -> merge.MergeReport:
    """Merges the chain into the origin; the same links give the same bytes, wherever `out` is.

    `on_tensor` is called with (tensors done, tensors in all).
    """
    return merge.merge(
        origin.checkpoint,
        [link.addend for link in links],
        out,
        metadata={
            "urushi.build": origin.build,
            "urushi.rounds": ",".join(str(link.round) for link in links),
        },
        on_tensor=on_tensor,
        identities={
            origin.checkpoint: origin.blake3,
            **{link.lora: link.blake3 for link in links},
        },
    )


def was_laid(job: Job, links: tuple[Link, ...]) -> Receipt | None:
    """The receipt of the last link's checkpoint, also where the file was dropped to save room."""
    root = job.folder.round(links[-1].round).root
    receipt = read_receipt(root, RECEIPT)
    if receipt is None or receipt.fingerprint != merge_fingerprint(job, links):
        return None
    require_untouched(job, root, receipt, AGAIN)
    return receipt


def sha256(path: Path) -> str:
    """In hexadecimal, what model sites and UIs show.

    Of a folder: of its files' hashes and names, one `sha256sum` line each, sorted by name.
    """
    if path.is_dir():
        lines = [f"{sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in files_of(path)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
