"""Gathers build.json from the receipts: nothing in it is known from anywhere else."""

from dataclasses import dataclass
from typing import Literal

from pipeline.artefacts.chain import images_receipt, resize_fingerprint
from pipeline.artefacts.job import Job
from pipeline.artefacts.ledger import Ledger, RoundRow
from pipeline.artefacts.receipts import Receipt, read_receipt
from pipeline.models.inspect import inspect
from pipeline.models.places import cache_folders
from pipeline.recipe import RoundLaw
from pipeline.rounds.chain import Link, origin_digest, sha256, was_laid
from pipeline.rounds.choice import Choice
from pipeline.rounds.training import pictures

Status = Literal["running", "finished", "stopped by the gate"]


@dataclass(frozen=True)
class Laid:
    """One round whose choice is made."""

    law: RoundLaw
    choice: Choice
    receipt: Receipt
    """Of the choice."""
    links: tuple[Link, ...]
    """The chain up to and with this round."""


def gather(job: Job, laid: tuple[Laid, ...], status: Status, *, final: bool) -> Ledger:
    """The ledger as the receipts have it now; with `final`, the final files are named too."""
    folder, recipe = job.folder, job.recipe
    rows = tuple(row for item in laid if (row := _row(job, item)) is not None)
    return Ledger(
        build=recipe.name,
        recipe=str(job.recipe_path),
        seed=recipe.seed,
        origin=str(recipe.base.checkpoint),
        origin_blake3=origin_digest(job),
        prediction_type=inspect(recipe.base).prediction_type,
        status=status,
        heldout_pictures=len(pictures(job, recipe.law()[0]).split.held_out),
        heldout_origin=laid[0].choice.counts.before if laid else None,
        rounds=rows,
        final=folder.final.name if final else None,
        final_sha256=sha256(folder.final) if final else None,
        final_lora=folder.final_lora.name if final else None,
        seconds=_data_seconds(job),
    )


def _row(job: Job, item: Laid) -> RoundRow | None:
    folder, choice, counts = job.folder.round(item.law.number), item.choice, item.choice.counts
    merged = was_laid(job, item.links) if item.links else None
    if choice.merged and merged is None:
        return None
    samples = read_receipt(folder.samples)
    phases = {
        "train": sum(attempt.train_seconds for attempt in choice.attempts),
        "strength": item.receipt.seconds,
        "merge": merged.seconds if merged and choice.merged else 0.0,
        "preview": samples.seconds if samples else 0.0,
    }
    return RoundRow(
        round=item.law.number,
        dataset=job.dataset_of(item.law.dataset).name,
        lora=str(folder.lora.relative_to(job.folder.root)),
        sha256=item.receipt.summary["sha256"],
        rank=job.recipe.lora.rank,
        alpha=job.recipe.lora.linear_alpha,
        learning_rate=counts.learning_rate,
        steps=counts.steps,
        strength=choice.strength,
        heldout_before=counts.before,
        heldout_after=counts.after if choice.merged else counts.before,
        improvement_low=counts.low,
        improvement_high=counts.high,
        decision=choice.decision,
        candidates=counts.candidates,
        attempts=len(choice.attempts),
        train_loss=counts.train_loss,
        checkpoint_sha256=merged.summary["sha256"] if merged else "",
        cast_loss=merged.summary["cast_loss"] if merged and choice.merged else 0.0,
        seconds=round(sum(phases.values()), 3),
        phases={name: round(seconds, 3) for name, seconds in phases.items()},
    )


def _data_seconds(job: Job) -> dict[str, float]:
    """Seconds of the data stages, over all datasets."""
    totals = dict.fromkeys(("download", "caption", "resize", "cache"), 0.0)
    for _, dataset in job.datasets:
        folder = job.workspace.dataset(dataset.name)
        images = images_receipt(folder, dataset)
        places = cache_folders(job, dataset)
        found = {
            "download": (images,),
            "caption": (read_receipt(places.captions),),
            "resize": (
                read_receipt(folder.resized(resize_fingerprint(job.recipe.resize, images))),
            ),
            "cache": (read_receipt(places.latents), read_receipt(places.text)),
        }
        for stage, receipts in found.items():
            totals[stage] += sum(receipt.seconds for receipt in receipts if receipt)
    return {stage: round(seconds, 3) for stage, seconds in totals.items()}
