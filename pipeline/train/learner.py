"""What changes a round's factors once their gradients are there: optimizer, schedule, fp16's
scaler, a bound on norms and the moving average, with all of it that a resume point must hold."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn

from pipeline.recipe.train import Train
from pipeline.train.groups import by_rate, moments, order
from pipeline.train.max_norm import MaxNorm
from pipeline.train.optimizers import judged, new_optimizer
from pipeline.train.rate import Phase
from pipeline.train.resume import State
from pipeline.train.schedule import new_schedule


class Learner:
    """Over `parameters`, by name, on their device; fresh, until `load` or `force`.

    Args:
        rate_of: a parameter's peak rate, by its name.
        steps: of the round, which runs through `phase` of a falling rate.
        max_norm: applied after each step, before the average.

    Raises:
        RequestError: the recipe's optimizer cannot be had or does not take what the recipe says, or
            the round is not longer than its warm-up.
    """

    def __init__(
        self,
        train: Train,
        accelerator: Accelerator,
        parameters: Mapping[str, nn.Parameter],
        rate_of: Callable[[str], float],
        steps: int,
        phase: Phase,
        max_norm: MaxNorm | None = None,
    ) -> None:
        self._train, self._accelerator, self._parameters = train, accelerator, parameters
        self._max_norm = max_norm
        groups = by_rate(parameters, rate_of)
        self.order = order(groups)
        """The parameters' names as the optimizer counts them."""
        optimizer = new_optimizer(train, groups)
        self._schedule = new_schedule(train, optimizer, steps, phase)
        self.optimizer = accelerator.prepare(optimizer)
        self._average = self._new_average()

    @property
    def rate(self) -> float:
        """The learning rate of the next step, the highest of its groups'."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def step(self) -> None:
        """One step by the gradients, which are clipped and then cleared."""
        self._accelerator.clip_grad_norm_(self._parameters.values(), self._train.max_grad_norm)
        self.optimizer.step()
        self._schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._max_norm is not None:
            self._max_norm.apply()
        if self._average is not None:
            self._average.step(self._parameters.values())

    def state(self) -> dict[str, Any]:
        """Its fields of a resume point's State."""
        scaler, average = self._accelerator.scaler, self._average
        return {
            "order": self.order,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self._schedule.state_dict(),
            "scaler": {} if scaler is None else scaler.state_dict(),
            "ema": {} if average is None else average.state_dict(),
            "scaled": {} if self._max_norm is None else self._max_norm.times(),
        }

    def load(self, state: State) -> None:
        """Goes on from a resume point of the same settings, whose parameters were taken."""
        self.optimizer.load_state_dict(dict(state.optimizer))
        self._schedule.load_state_dict(dict(state.scheduler))
        self._load_rest(state)

    def force(self, state: State) -> None:
        """Goes on from one of other settings, under the recipe's rates and schedule, with the
        moments that were gathered."""
        if state.settings["train"]["optimizer"] == self._train.optimizer:
            fresh = self.optimizer.state_dict()
            kept = moments(state.optimizer["state"], state.order, self.order)
            self.optimizer.load_state_dict({**fresh, "state": kept})
        fresh = self._schedule.state_dict()
        self._schedule.load_state_dict({**fresh, "last_epoch": state.step})
        rates = zip(self._schedule.base_lrs, self._schedule.lr_lambdas, strict=True)
        for group, (rate, share) in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share(state.step)
        self._load_rest(state)

    def _load_rest(self, state: State) -> None:
        if self._accelerator.scaler is not None and state.scaler:
            self._accelerator.scaler.load_state_dict(dict(state.scaler))
        if self._max_norm is not None:
            self._max_norm.take(state.scaled)
        # Of the parameters that were taken, where a forced training had none so far.
        self._average = self._new_average()
        if self._average is not None and state.ema:
            self._average.load_state_dict({**state.ema, "decay": self._train.ema_decay})
            self._average.to(self._accelerator.device)

    def _new_average(self) -> EMAModel | None:
        decay = self._train.ema_decay
        return EMAModel(self._parameters.values(), decay=decay, foreach=True) if decay else None

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Inside, the parameters are those to look at and to save: their moving average where the
        recipe asks for one, else what the optimizer wants judged. After it they are as before."""
        if self._average is None:
            with judged(self._train.optimizer, self.optimizer):
                yield
            return
        self._average.store(self._parameters.values())
        self._average.copy_to(self._parameters.values())
        try:
            yield
        finally:
            self._average.restore(self._parameters.values())
