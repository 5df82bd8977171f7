"""A finished training into the round's LoRA, its losses and the receipt."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.artefacts.files import write_json
from pipeline.artefacts.receipts import Receipt, write_receipt
from pipeline.models.components import Family
from pipeline.train.adapter import factors, save_lora
from pipeline.train.carry import MARK, SHARE, net
from pipeline.train.resume import clear_states
from pipeline.train.run import Run

LORA = "lora.safetensors"
LOSSES = "losses.json"
KOHYA_VERSIONS: Mapping[Family, str] = {"sd15": "sd_v1", "sdxl": "sdxl_base_v1-0"}
"""What kohya's files call the families."""


def snapshot_steps(steps: int, count: int) -> tuple[int, ...]:
    """After which steps a LoRA is kept: the ends of `count` equal parts of them."""
    return tuple(dict.fromkeys(max(1, round(steps * part / count)) for part in range(1, count + 1)))


def snapshot(folder: Path, step: int) -> Path:
    """Where the LoRA after `step` is kept."""
    return folder / f"step-{step:06d}.safetensors"


def write_snapshot(run: Run) -> None:
    """Keeps the LoRA as it is now."""
    with run.judged():
        kept = net(factors(run.network), run.carried)
        save_lora(kept, snapshot(run.training.folder, run.step), _metadata(run))


def _metadata(run: Run) -> dict[str, str]:
    """What kohya's files say of their training."""
    job, lora, train = run.training, run.recipe.lora, run.recipe.train
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.linear_alpha),
        "ss_learning_rate": str(job.learning_rate),
        "ss_unet_lr": str(job.learning_rate),
        "ss_optimizer": train.optimizer,
        "ss_lr_scheduler": train.scheduler,
        "ss_gradient_accumulation_steps": str(train.accumulation),
        "ss_steps": str(run.step),
        "ss_seed": str(job.seed),
        "ss_num_train_images": str(len(job.pictures)),
        "ss_v2": "False",
        "ss_base_model_version": KOHYA_VERSIONS[run.family],
        "ss_output_name": f"{run.recipe.name}-round-{job.round:02d}",
        "urushi_round": str(job.round),
    }
    if lora.conv_rank:
        metadata["ss_network_args"] = (
            f'{{"conv_dim": "{lora.conv_rank}", "conv_alpha": "{lora.convolution_alpha}"}}'
        )
    if shares := run.network.shares:
        rates = sorted({job.learning_rate * share for share in shares.values()})
        metadata["ss_text_encoder_lr"] = ", ".join(map(str, rates))
    if run.carried:
        metadata[MARK] = f"{SHARE:g}"
    return metadata


def write_product(run: Run) -> Receipt:
    """Writes all three into the training's folder; the resume points are no longer needed."""
    job = run.training
    with run.judged():
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
