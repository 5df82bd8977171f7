"""Gathers build.json from the receipts: nothing in it is known from anywhere else."""

from collections.abc import Mapping
from typing import Literal

from pipeline.artefacts.chain import images_receipt, resize_fingerprint
from pipeline.artefacts.job import Job
from pipeline.artefacts.ledger import (
    Gain,
    Ledger,
    Refitted,
    RoundRow,
    read_ledger,
    write_ledger,
)
from pipeline.artefacts.receipts import read_receipt
from pipeline.artefacts.strength import Strength, parted
from pipeline.errors import RequestError, UrushiError
from pipeline.models.inspect import inspect
from pipeline.models.places import cache_folders
from pipeline.rounds.baseline import baseline_found
from pipeline.rounds.chain import origin_digest, sha256, was_laid
from pipeline.rounds.gate import judge
from pipeline.rounds.history import History, Laid, history
from pipeline.rounds.pictures import pictures
from pipeline.rounds.rates import trials_found
from pipeline.rounds.settle import gain_of, refitted
from pipeline.train.counted import seed_of

Status = Literal["running", "finished", "stopped by the gate"]


def write_build_ledger(job: Job, status: Status, *, final: bool = False) -> None:
    """build.json as the receipts have it now."""
    found = history(job, len(job.recipe.law()))
    write_ledger(job.folder.ledger, gather(job, found, status, final=final))


def require_same_origin(job: Job) -> None:
    """Raises RequestError where the base is not the file that the build's rounds were laid on."""
    try:
        ledger = read_ledger(job.folder.ledger)
    except UrushiError:
        return  # It has none yet, or a damaged one, which the next part gathers again.
    digest = origin_digest(job)
    if ledger.rounds and ledger.origin_blake3 != digest:
        raise RequestError(
            f"[base].checkpoint {job.recipe.base.checkpoint} is not the file that {ledger.build} "
            f"started from: its BLAKE3 is {digest}, and was {ledger.origin_blake3}. Put the "
            f"original back, or give the recipe another name; deleting {job.folder.root} starts "
            "this one anew."
        )


def gather(job: Job, history: History, status: Status, *, final: bool) -> Ledger:
    """The ledger as the receipts have it now; with `final`, the final files are named too."""
    folder, recipe, laid = job.folder, job.recipe, history.laid
    refit, trials = refitted(job, history), trials_found(job)
    last = dict(zip(refit.rounds, refit.final, strict=True)) if refit else {}
    rows = tuple(row for item in laid if (row := _row(job, item, last)) is not None)
    return Ledger(
        build=recipe.name,
        recipe=str(job.recipe_path),
        seed=recipe.seed,
        origin=str(recipe.base.checkpoint),
        origin_blake3=origin_digest(job),
        prediction_type=inspect(recipe.base).prediction_type,
        status=status,
        stopped=history.stopped.reason if history.stopped else None,
        trials=trials.trials if trials else (),
        refit=refit,
        baseline=baseline_found(job, history),
        heldout_pictures=len(pictures(job, recipe.law()[0]).split.held_out),
        heldout_origin=laid[0].choice.counts.before if laid else None,
        gain=_gain(job, history, refit),
        rounds=rows,
        final=folder.final.name if final else None,
        final_sha256=sha256(folder.final) if final else None,
        final_lora=folder.final_lora.name if final and not recipe.lora.dora else None,
        seconds=_data_seconds(job),
    )


def _gain(job: Job, history: History, refit: Refitted | None) -> Gain | None:
    """Other datasets' judging pictures are others: their losses do not compare with the first's."""
    merged = [item for item in history.laid if item.choice.merged]
    first = history.laid[0].law.dataset if history.laid else None
    if refit is not None and refit.kept and {item.law.dataset for item in merged} == {first}:
        return refit.origin
    alike = [item for item in merged if item.law.dataset == first]
    if not alike:
        return None
    losses = history.laid[0].choice.counts.losses_before, alike[-1].choice.counts.losses_after
    return gain_of(judge(*losses, seed_of(job.recipe.seed, "bootstrap", "gain")))


def _row(job: Job, item: Laid, last: Mapping[int, Strength]) -> RoundRow | None:
    """`last`: the final strengths by round, where they were fitted together."""
    folder, choice, counts = job.folder.round(item.law.number), item.choice, item.choice.counts
    merged = was_laid(job, item.links) if item.links else None
    if choice.merged and merged is None:
        return None
    final = last.get(choice.round, choice.merged_at)
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
        encoder_strength=_text(choice.merged_at),
        heldout_before=counts.before,
        heldout_after=counts.after if choice.merged else counts.before,
        improvement_low=counts.low,
        improvement_high=counts.high,
        decision=choice.decision,
        wanted=counts.wanted,
        final_strength=parted(final)[0],
        final_encoder_strength=_text(final),
        buckets=counts.buckets,
        anchor_before=counts.anchor_before,
        anchor_after=choice.anchor,
        drift=merged.summary["drift"] if merged else 0.0,
        cosines=merged.summary["cosines"] if merged and choice.merged else {},
        effective_rank=merged.summary["effective_rank"] if merged else 0.0,
        intruders=merged.summary["intruders"] if merged else 0,
        peak_memory=item.receipt.summary["peak_memory"],
        versions=item.receipt.summary["versions"],
        candidates=counts.candidates,
        attempts=len(choice.attempts),
        train_loss=counts.train_loss,
        checkpoint_sha256=merged.summary["sha256"] if merged else "",
        cast_loss=merged.summary["cast_loss"] if merged and choice.merged else 0.0,
        seconds=round(sum(phases.values()), 3),
        phases={name: round(seconds, 3) for name, seconds in phases.items()},
    )


def _text(strength: Strength) -> float | None:
    """The text encoders', where they have one of their own."""
    return strength[1] if isinstance(strength, tuple) else None


def _data_seconds(job: Job) -> dict[str, float]:
    """Seconds of the data stages, over all datasets."""
    totals = dict.fromkeys(("download", "caption", "resize", "cache"), 0.0)
    for _, dataset in job.datasets:
        folder = job.workspace.dataset(dataset.name)
        images = images_receipt(job, dataset)
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
