"""A finished training into the round's LoRA, its losses and the receipt."""

from pathlib import Path

from pipeline.artefacts.files import write_json
from pipeline.artefacts.receipts import Receipt, write_receipt
from pipeline.train.adapter import factors, save_lora
from pipeline.train.carry import net
from pipeline.train.metadata import lora_metadata
from pipeline.train.resume import clear_states
from pipeline.train.run import Run

LORA = "lora.safetensors"
LOSSES = "losses.json"


def kept_steps(run: Run) -> frozenset[int]:
    """After which steps of `run` a LoRA is kept: as its task and its recipe say. What the last step
    of all gives is the product."""
    parts, every = run.training.snapshots, run.recipe.train.lora_every
    regular = range(every, run.steps, every) if every else ()
    return frozenset((*regular, *(snapshot_steps(run.steps, parts) if parts else ())))


def snapshot_steps(steps: int, count: int) -> tuple[int, ...]:
    """After which steps a LoRA is kept: the ends of `count` equal parts of them."""
    return tuple(dict.fromkeys(max(1, round(steps * part / count)) for part in range(1, count + 1)))


def snapshot(folder: Path, step: int) -> Path:
    """Where the LoRA after `step` is kept."""
    return folder / f"step-{step:06d}.safetensors"


def clear_snapshots(folder: Path) -> None:
    """Removes those of an earlier training, where one begins anew."""
    for path in folder.glob("step-*.safetensors"):
        path.unlink()


def write_snapshot(run: Run) -> None:
    """Keeps the LoRA as it is now."""
    with run.learner.judged():
        kept = net(factors(run.network), run.carried)
        save_lora(kept, snapshot(run.training.folder, run.step), _metadata(run))


def _metadata(run: Run) -> dict[str, str]:
    return lora_metadata(
        run.recipe,
        run.training,
        run.family,
        run.step,
        prediction_type=run.noise_schedule.config.prediction_type,
        shares=run.network.shares,
        carried=bool(run.carried),
    )


def write_product(run: Run) -> Receipt:
    """Writes all three into the training's folder; the resume points are no longer needed."""
    job = run.training
    with run.learner.judged():
        save_lora(net(factors(run.network), run.carried), job.folder / LORA, _metadata(run))
    losses = run.losses.values
    write_json(job.folder / LOSSES, [round(loss, 6) for loss in losses])
    tail = losses[-max(1, len(losses) // 10) :]
    receipt = write_receipt(
        job.folder,
        "train",
        job.fingerprint,
        inputs={"round": job.round, "learning_rate": job.learning_rate},
        outputs=[job.folder / LORA, job.folder / LOSSES],
        summary={
            "steps": run.steps,
            "train_loss": sum(tail) / len(tail),
            "layers": len(run.covered),
            "parameters": sum(p.numel() for p in run.parameters.values()),
            **({"max_norm": run.max_norm.told()} if run.max_norm else {}),
            **({"forced": list(run.forced)} if run.forced else {}),
        },
        seconds=run.seconds,
    )
    clear_states(job.folder)
    return receipt
