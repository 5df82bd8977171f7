"""A round's training in progress: networks, optimizer and counters, and one step of them.

Everything in it is rebuilt from disk on resume. A step is `accumulation` batches, whose samples
count alike in its loss: of a step's last, shorter batch no sample weighs more.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from pipeline.errors import RequestError
from pipeline.models.family import family_of
from pipeline.models.load import load_scheduler
from pipeline.recipe import BuildRecipe
from pipeline.train.conditioning import predict
from pipeline.train.counted import seed_of
from pipeline.train.feed import Feed, Inputs
from pipeline.train.losses import Losses
from pipeline.train.network import load_network, mixed_precision
from pipeline.train.objective import noisy, sample_losses, target
from pipeline.train.optimizers import Group, judged, new_optimizer
from pipeline.train.plan import RoundTraining
from pipeline.train.resume import State, load_state, require_same, save_state, take
from pipeline.train.schedule import new_schedule


class Run:
    """One attempt at a round, from its first step; `resume` moves it on to where it was left."""

    def __init__(self, recipe: BuildRecipe, training: RoundTraining) -> None:
        self.recipe, self.training = recipe, training
        train = recipe.train
        self.accelerator = Accelerator(mixed_precision=mixed_precision(train.precision))
        if self.accelerator.num_processes > 1:
            raise RequestError(
                "Training on several GPUs at once is not supported yet. Start urushi without "
                "`accelerate launch`, or set CUDA_VISIBLE_DEVICES to one card."
            )
        self.family = family_of(recipe.base)
        self._noise_schedule: DDPMScheduler = load_scheduler(recipe.base)
        self._feed = Feed(recipe, training, int(self._noise_schedule.config.num_train_timesteps))
        self._batches = self._feed.steps_per_epoch * (training.epochs or 1)
        if training.steps is not None:
            self._batches = training.steps * train.accumulation
        self.steps = -(-self._batches // train.accumulation)
        unet, self.covered = load_network(recipe, training, self.accelerator.mixed_precision)
        self.network = unet
        self.parameters = {n: p for n, p in unet.named_parameters() if p.requires_grad}
        """What is trained, by name."""
        trained = list(self.parameters.values())
        self._optimizer = new_optimizer(train, [Group(trained, training.learning_rate)])
        self._scheduler = new_schedule(train, self._optimizer, self.steps)
        self._unet, self._optimizer = self.accelerator.prepare(unet, self._optimizer)
        self._average: EMAModel | None = None
        if train.ema_decay:
            self._average = EMAModel(trained, decay=train.ema_decay, foreach=True)
        self.losses = Losses((), train.divergence, self._remedy)
        self.step = 0
        self.forced: tuple[str, ...] = ()
        self._earlier_seconds, self._started = 0.0, time.monotonic()

    @property
    def _remedy(self) -> str:
        return (
            f"That is round {self.training.round}; its last resume point stands. Lower "
            "[rounds].learning_rate or [train].max_grad_norm, or raise [train].warmup; then go on "
            f"from there with --force, or delete {self.training.folder} to train the round anew."
        )

    @property
    def seconds(self) -> float:
        """Spent in training, interruptions left out."""
        return self._earlier_seconds + time.monotonic() - self._started

    def resume(self) -> None:
        """Continues from the newest resume point, if there is one.

        Raises:
            RequestError: it was made under other settings, and the training is not to be forced.
        """
        state = load_state(self.training.folder)
        if state is None:
            return
        changed = require_same(state, self.training)
        take(state, self.parameters, self.training.folder)
        if changed:
            self._force(state)
        else:
            self._optimizer.load_state_dict(dict(state.optimizer))
            self._scheduler.load_state_dict(dict(state.scheduler))
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(dict(state.scaler))
        if self._average is not None and state.ema:
            self._average.load_state_dict(dict(state.ema))
            self._average.to(self.accelerator.device)
        self.step = state.step
        self.losses = Losses(state.losses, self.recipe.train.divergence, self._remedy)
        self._earlier_seconds = state.seconds
        self.forced = state.forced
        if changed:
            self.forced += (f"from step {state.step}: {'; '.join(changed)}",)

    def _force(self, state: State) -> None:
        """Goes on under the recipe's rates and schedule, with the moments that were gathered."""
        if state.settings["train"]["optimizer"] == self.recipe.train.optimizer:
            fresh = self._optimizer.state_dict()
            self._optimizer.load_state_dict({**fresh, "state": state.optimizer["state"]})
        fresh = self._scheduler.state_dict()
        self._scheduler.load_state_dict({**fresh, "last_epoch": state.step})
        rates = zip(self._scheduler.base_lrs, self._scheduler.lr_lambdas, strict=True)
        groups = self._optimizer.param_groups
        for group, (rate, share) in zip(groups, rates, strict=True):
            group["lr"] = rate * share(state.step)

    def advance(self) -> None:
        """One optimizer step."""
        train = self.recipe.train
        first = self.step * train.accumulation
        batches = range(first, min(first + train.accumulation, self._batches))
        inputs = [self._feed.at(batch) for batch in batches]
        samples = sum(len(each.timesteps) for each in inputs)
        total = torch.zeros((), device=self.accelerator.device)
        for batch, each in zip(batches, inputs, strict=True):
            # Layers that draw by themselves (dropout in a LoRA) draw the same after a resume.
            torch.manual_seed(seed_of(self.training.seed, self.training.round, batch, "layers"))
            loss = self._losses(each.to(self.accelerator.device)).sum() / samples
            self.accelerator.backward(loss)
            total += loss.detach()
        self.accelerator.clip_grad_norm_(self.parameters.values(), train.max_grad_norm)
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.step(self.parameters.values())
        self.losses.add(total)
        self.step += 1

    def _losses(self, inputs: Inputs) -> Tensor:
        """(B,): one batch's losses, a sample each."""
        schedule, timesteps = self._noise_schedule, inputs.timesteps
        wanted = target(schedule, inputs.latents, inputs.noise, timesteps)
        mixed = noisy(schedule, inputs.latents, inputs.noise, timesteps)
        with self.accelerator.autocast():
            prediction = predict(self._unet, mixed, timesteps, inputs.told)
        return sample_losses(prediction, wanted)

    def look(self) -> None:
        """Reads the losses of the steps since the last look.

        Raises:
            UrushiError: one of them is not finite, or they grow.
        """
        self.losses.gather()

    def save(self) -> None:
        """Adds a resume point, once the losses up to it were looked at."""
        self.look()
        scaler = self.accelerator.scaler
        save_state(
            self.training.folder,
            State(
                fingerprint=self.training.fingerprint,
                settings=self.training.settings,
                step=self.step,
                parameters={n: p.detach().cpu() for n, p in self.parameters.items()},
                optimizer=self._optimizer.state_dict(),
                scheduler=self._scheduler.state_dict(),
                scaler={} if scaler is None else scaler.state_dict(),
                ema={} if self._average is None else self._average.state_dict(),
                losses=tuple(self.losses.values),
                seconds=self.seconds,
                forced=self.forced,
            ),
            self.recipe.train.save_last,
        )

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Inside, the factors are those to look at and to save: their moving average where the
        recipe asks for one, else what the optimizer wants judged. After it they are as before."""
        if self._average is None:
            with judged(self.recipe.train.optimizer, self._optimizer):
                yield
            return
        self._average.store(self.parameters.values())
        self._average.copy_to(self.parameters.values())
        try:
            yield
        finally:
            self._average.restore(self.parameters.values())
