"""Trains one round's LoRA, from its last resume point if there is one."""

import time

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler

from pipeline.artefacts.files import write_json
from pipeline.artefacts.receipts import Receipt, done, write_receipt
from pipeline.errors import RequestError, UrushiError
from pipeline.models.load import load_scheduler
from pipeline.progress import Progress
from pipeline.recipe import BuildRecipe
from pipeline.train.adapter import factors, save_lora, set_factors, trainable
from pipeline.train.feed import Feed
from pipeline.train.network import load_network, mixed_precision
from pipeline.train.objective import noisy, sample_losses, target
from pipeline.train.optimizers import new_optimizer
from pipeline.train.plan import RoundTraining
from pipeline.train.resume import FILE, State, load_state, save_state

LORA = "lora.safetensors"
LOSSES = "losses.json"


def train_round(recipe: BuildRecipe, training: RoundTraining, progress: Progress) -> Receipt:
    """Trains, or finds it done; returns the receipt, whose summary has steps, train_loss, seconds.

    Raises:
        RequestError: no pictures to train on, or a configuration that this version does not run.
        UrushiError: the loss is not finite.
    """
    receipt = done(training.folder, training.fingerprint)
    if receipt is not None:
        return receipt
    run = _Run(recipe, training)
    run.resume()
    with progress.bar(f"train {training.round}", run.steps, "step", run.step) as bar:
        while run.step < run.steps:
            run.advance()
            bar.advance()
            bar.note(f"loss {run.recent_loss:.4f}")
            if run.step % recipe.train.save_every == 0 and run.step < run.steps:
                run.save()
    return run.finish()


class _Run:
    """The state of a training in progress; everything in it is rebuilt from disk on resume."""

    def __init__(self, recipe: BuildRecipe, training: RoundTraining) -> None:
        self.recipe, self.training = recipe, training
        train = recipe.train
        self.accelerator = Accelerator(mixed_precision=mixed_precision(train.precision))
        if self.accelerator.num_processes > 1:
            raise RequestError(
                "Training on several GPUs at once is not supported yet. Start urushi without "
                "`accelerate launch`, or set CUDA_VISIBLE_DEVICES to one card."
            )
        self.noise_schedule: DDPMScheduler = load_scheduler(recipe.base)
        self.feed = Feed(recipe, training, int(self.noise_schedule.config.num_train_timesteps))
        self.steps = training.steps or (training.epochs or 1) * self.feed.steps_per_epoch
        unet, self.covered = load_network(recipe, training, self.accelerator.mixed_precision)
        optimizer = new_optimizer(train, trainable(unet), training.learning_rate)
        scheduler = get_scheduler(
            train.scheduler,
            optimizer,
            num_warmup_steps=round(train.warmup * self.steps),
            num_training_steps=self.steps,
        )
        self.unet, self.optimizer = self.accelerator.prepare(unet, optimizer)
        self.scheduler = scheduler
        self.step = 0
        self.losses: list[float] = []
        self.earlier_seconds, self.started = 0.0, time.monotonic()

    @property
    def recent_loss(self) -> float:
        tail = self.losses[-20:]
        return sum(tail) / max(1, len(tail))

    @property
    def seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    def resume(self) -> None:
        """Continues from the resume point, if there is one of this very training."""
        state = load_state(self.training.folder, self.training.fingerprint)
        if state is None:
            return
        set_factors(self.accelerator.unwrap_model(self.unet), state.factors)
        self.optimizer.load_state_dict(state.optimizer)
        self.scheduler.load_state_dict(dict(state.scheduler))
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(dict(state.scaler))
        self.step, self.losses = state.step, list(state.losses)
        self.earlier_seconds = state.seconds

    def advance(self) -> None:
        """One optimizer step."""
        inputs = self.feed.at(self.step).to(self.accelerator.device)
        latents, noise, timesteps = inputs.latents, inputs.noise, inputs.timesteps
        wanted = target(self.noise_schedule, latents, noise, timesteps)
        mixed = noisy(self.noise_schedule, latents, noise, timesteps)
        with self.accelerator.autocast():
            prediction = self.unet(mixed, timesteps, inputs.hidden).sample
        loss = sample_losses(prediction, wanted).mean()
        value = float(loss.detach())
        if not torch.isfinite(loss.detach()):
            raise UrushiError(
                f"The loss of round {self.training.round} is {value} at step {self.step + 1}. "
                "Lower [rounds].learning_rate or raise [train].warmup. The resume point stands."
            )
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(
            trainable(self.accelerator.unwrap_model(self.unet)), self.recipe.train.max_grad_norm
        )
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(value)
        self.step += 1

    def save(self) -> None:
        """Replaces the resume point."""
        scaler = self.accelerator.scaler
        save_state(
            self.training.folder,
            State(
                fingerprint=self.training.fingerprint,
                step=self.step,
                factors=factors(self.accelerator.unwrap_model(self.unet)),
                optimizer=self.optimizer.state_dict(),
                scheduler=self.scheduler.state_dict(),
                scaler={} if scaler is None else scaler.state_dict(),
                losses=tuple(self.losses),
                seconds=self.seconds,
            ),
        )

    def finish(self) -> Receipt:
        """Writes the LoRA, its losses and the receipt; the resume point is no longer needed."""
        folder, job, lora = self.training.folder, self.training, self.recipe.lora
        metadata = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(lora.rank),
            "ss_network_alpha": str(lora.linear_alpha),
            "ss_learning_rate": str(job.learning_rate),
            "ss_optimizer": self.recipe.train.optimizer,
            "ss_lr_scheduler": self.recipe.train.scheduler,
            "ss_steps": str(self.steps),
            "ss_seed": str(job.seed),
            "ss_num_train_images": str(len(job.pictures)),
            "ss_v2": "False",
            "ss_base_model_version": "sd_v1",
            "ss_output_name": f"{self.recipe.name}-round-{job.round:02d}",
            "urushi_round": str(job.round),
        }
        if lora.conv_rank:
            metadata["ss_network_args"] = (
                f'{{"conv_dim": "{lora.conv_rank}", "conv_alpha": "{lora.convolution_alpha}"}}'
            )
        save_lora(self.accelerator.unwrap_model(self.unet), folder / LORA, metadata)
        write_json(folder / LOSSES, [round(loss, 6) for loss in self.losses])
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        receipt = write_receipt(
            folder,
            "train",
            job.fingerprint,
            inputs={"round": job.round, "learning_rate": job.learning_rate},
            outputs=[folder / LORA, folder / LOSSES],
            summary={
                "steps": self.steps,
                "train_loss": sum(tail) / len(tail),
                "layers": len(self.covered),
                "parameters": sum(p.numel() for p in trainable(self.unet)),
            },
            seconds=self.seconds,
        )
        (folder / FILE).unlink(missing_ok=True)
        return receipt
