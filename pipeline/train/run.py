"""A round's training in progress: networks, optimizer and counters, and one step of them.

Everything in it is rebuilt from disk on resume.
"""

import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor

from pipeline.errors import RequestError
from pipeline.models.family import family_of
from pipeline.models.load import load_scheduler
from pipeline.recipe import BuildRecipe
from pipeline.train.adapter import layer_of
from pipeline.train.carry import carried_over
from pipeline.train.counted import seed_of
from pipeline.train.deal import Deal, Share
from pipeline.train.devices import Devices
from pipeline.train.feed import Feed, Inputs, require_fit
from pipeline.train.learner import Learner
from pipeline.train.losses import Losses
from pipeline.train.machine import COMPILED
from pipeline.train.max_norm import MaxNorm
from pipeline.train.network import live_text, load_network, within
from pipeline.train.objective import noisy, target
from pipeline.train.plan import RoundTraining
from pipeline.train.precision import mixed_precision
from pipeline.train.principal import beginnings
from pipeline.train.resume import State, has_state, load_state, require_same, save_state, take
from pipeline.train.start import BATCHES, aim
from pipeline.train.weighting import training_losses


class Run:
    """One attempt at a round, from its first step; `resume` moves it on to where it was left."""

    def __init__(self, recipe: BuildRecipe, training: RoundTraining) -> None:
        self.recipe, self.training = recipe, training
        train, start = recipe.train, training.start
        # It keeps the first precision that a process asked for; rounds may ask for others.
        AcceleratorState._reset_state(reset_partial_state=False)
        self.accelerator = Accelerator(mixed_precision=mixed_precision(train.precision))
        self.devices = Devices(self.accelerator, train.accumulation)
        self.family = family_of(recipe.base)
        self.noise_schedule: DDPMScheduler = load_scheduler(recipe.base)
        text = live_text(recipe, training)
        timesteps = int(self.noise_schedule.config.num_train_timesteps)
        self.feed = Feed(recipe, training, timesteps, text)
        self._deal = Deal(
            self.feed,
            self._batches(),
            train.accumulation,
            self.accelerator.device,
            self.devices.count,
            self.devices.place,
        )
        self.steps = self._deal.steps
        chain = zip(start.loras, start.strengths, strict=True)
        self.carried = carried_over(tuple(chain)) if start.policy == "carried" else {}
        """What the LoRA was given of the one before, and its saved file takes back."""
        resumed, mixed = has_state(training.folder), self.accelerator.mixed_precision
        self.network, self.covered = load_network(
            recipe, training, mixed, self.carried, text, resumed=resumed
        )
        self.carried = within(self.carried, self.network, self.covered)
        require_fit(self.feed.at(0), self.network.unet, training)
        self.parameters = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        """What is trained, by name."""
        self._kept = {**self.parameters, **beginnings(self.network)}
        """The same, and what it began at where that is of the weights: a decomposition done again
        elsewhere may turn its directions around."""
        self._make_fast()
        self._denoiser = self.devices.wrapped(self.network)
        if start.aims and not resumed:
            aim(self.network, self.carried, self._gradients)
        self.devices.agree_on(self._kept.values())
        self.max_norm: MaxNorm | None = None
        if recipe.lora.max_norm is not None:
            self.max_norm = MaxNorm(self.network, recipe.lora.max_norm)
        shares = {target.name: target.rate for target in self.covered}
        self.learner = Learner(
            train,
            self.accelerator,
            self.parameters,
            lambda name: training.learning_rate * shares[layer_of(name)],
            self.steps,
            training.phase,
            self.max_norm,
        )
        self.losses = self._losses_from(())
        self.step = 0
        self.shown = 0
        """Pictures trained on by all devices, in this process."""
        self.forced: tuple[str, ...] = ()
        self._earlier_seconds, self._started = 0.0, time.monotonic()

    def _batches(self) -> int:
        """Of the whole round."""
        if self.training.steps is not None:
            return self.training.steps * self.recipe.train.accumulation
        return self.feed.steps_per_epoch * (self.training.epochs or 1)

    def _make_fast(self) -> None:
        """Lays the UNet's weights out and compiles its blocks, as the recipe says.

        Raises:
            RequestError: they are to be compiled for a CPU, where that was found to be wrong.
        """
        train, unet = self.recipe.train, self.network.unet
        on_gpu = self.accelerator.device.type == "cuda"
        if on_gpu if train.channels_last == "auto" else train.channels_last:
            unet.to(memory_format=torch.channels_last)
        if train.compile and not on_gpu:
            raise RequestError(COMPILED)
        if train.compile:
            # The blocks of its transformers alone: one compilation serves all of a width, in every
            # bucket. Of whole networks the compiler fails at convolutions of sizes left open.
            for module in unet.modules():
                if isinstance(module, BasicTransformerBlock):
                    module.compile(dynamic=True)

    def _losses_from(self, known: tuple[float, ...]) -> Losses:
        return Losses(known, self.recipe.train.divergence, self._remedy)

    def _remedy(self) -> str:
        """What a person may do where the loss goes wrong."""
        folder = self.training.folder
        change = (
            "Lower [rounds].learning_rate or [train].max_grad_norm, or raise [train].warmup; then"
        )
        if not has_state(folder):
            return (
                f"That is round {self.training.round}, of which nothing is saved yet. {change} run "
                "the same command again."
            )
        return (
            f"That is round {self.training.round}; its last resume point stands. {change} go on "
            f"from there with --force, or delete {folder} to train the round anew."
        )

    @property
    def seconds(self) -> float:
        """Spent in training, interruptions left out."""
        return self._earlier_seconds + time.monotonic() - self._started

    def resume(self, say: Callable[[str], None]) -> None:
        """Continues from the newest resume point that is whole, if there is one.

        Args:
            say: told which are not.

        Raises:
            RequestError: it was made under other settings, and the training is not to be forced.
            UrushiError: none is whole.
        """
        state = load_state(self.training.folder, say)
        if state is None:
            return
        changed = require_same(state, self.training)
        take(state, self._kept, self.training.folder)
        if changed:
            self.learner.force(state)
        else:
            self.learner.load(state)
        self.step = state.step
        self.losses = self._losses_from(state.losses)
        self._earlier_seconds = state.seconds
        self.forced = state.forced
        if changed:
            self.forced += (f"from step {state.step}: {'; '.join(changed)}",)

    def advance(self) -> None:
        """One optimizer step."""
        total = torch.zeros((), device=self.accelerator.device)
        for share in self._deal.at(self.step):
            total += self._backward(share)
        self.learner.step()
        self.losses.add(total)
        self.shown += share.samples
        self.step += 1

    def _gradients(self) -> None:
        """Adds the gradient of the first batches' mean loss to the factors'."""
        for share in self._deal.first(BATCHES):
            self._backward(share)

    def _backward(self, share: Share) -> Tensor:
        """Adds the gradient of one batch's part in a loss to the factors'; () that part."""
        self._seed_layers(share.batch)
        with self.devices.adding_up(self._denoiser, share.last):
            loss = self.sample_losses(share.inputs).sum() / share.samples
            if not share.counts:
                loss = loss * 0
            # Gradients are averaged over devices, where a sum is meant.
            self.accelerator.backward(loss * self.devices.count)
        return loss.detach()

    def _seed_layers(self, batch: int) -> None:
        """Layers that draw by themselves (dropout in a LoRA) draw the same after a resume."""
        torch.manual_seed(seed_of(self.training.seed, self.training.round, batch, "layers"))

    def sample_losses(self, inputs: Inputs) -> Tensor:
        """(B,): one batch's losses, a sample each."""
        schedule, timesteps = self.noise_schedule, inputs.timesteps
        wanted = target(schedule, inputs.latents, inputs.noise, timesteps)
        mixed = noisy(schedule, inputs.latents, inputs.shown, timesteps)
        with self.accelerator.autocast():
            prediction = self._denoiser(mixed, timesteps, inputs.told)
        losses = training_losses(
            self.recipe.train, schedule, prediction, wanted, timesteps, inputs.masks
        )
        return losses * inputs.weights

    def look(self) -> None:
        """Reads the losses of the steps since the last look.

        Raises:
            UrushiError: one of them is not finite, or they grow.
        """
        self.losses.gather(self.devices.sum)

    def agree(self, asked: bool) -> bool:
        """Whether any device was asked to stop: they look where they meet anyway."""
        if self.devices.count == 1:
            return asked
        if self.step % self.recipe.train.log_every:
            return False
        device = self.accelerator.device
        return bool(self.devices.sum(torch.tensor(float(asked), device=device)) > 0)

    def save(self) -> None:
        """Adds a resume point, once the losses up to it were looked at."""
        self.look()
        if not self.accelerator.is_main_process:
            return
        save_state(
            self.training.folder,
            State(
                fingerprint=self.training.fingerprint,
                settings=self.training.settings,
                step=self.step,
                parameters={n: p.detach().cpu() for n, p in self._kept.items()},
                losses=tuple(self.losses.values),
                seconds=self.seconds,
                forced=self.forced,
                **self.learner.state(),
            ),
            self.recipe.train.save_last,
        )
