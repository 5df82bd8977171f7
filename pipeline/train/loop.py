"""Trains one round's LoRA, from its last resume point if there is one."""

import time
from contextlib import ExitStack

from accelerate import PartialState

from pipeline.artefacts.locks import locked
from pipeline.artefacts.receipts import Receipt, done
from pipeline.progress import Progress
from pipeline.recipe import BuildRecipe
from pipeline.train.memory import enough_memory
from pipeline.train.plan import RoundTraining
from pipeline.train.product import clear_snapshots, kept_steps, write_product, write_snapshot
from pipeline.train.run import Run
from pipeline.train.sampling import Samples
from pipeline.train.stopping import Stopping
from pipeline.train.watch import Watch


def train_here(
    recipe: BuildRecipe, training: RoundTraining, progress: Progress, stopping: Stopping
) -> Receipt:
    """Trains in this process, which on several devices is one of several. Raises as train_round."""
    with ExitStack() as holding:
        if PartialState().is_main_process:
            holding.enter_context(locked(training.folder))
        with enough_memory(recipe.train, f"for round {training.round}"):
            run = Run(recipe, training)
            run.resume(progress.say)
            _steps(run, stopping, progress)
        if run.accelerator.is_main_process:
            write_product(run)
            if run.max_norm is not None:
                progress.say(f"round {training.round}: {run.max_norm.sentence()}")
        run.accelerator.wait_for_everyone()
        receipt = done(training.folder, training.fingerprint)
        assert receipt is not None
        return receipt


def _steps(run: Run, stopping: Stopping, progress: Progress) -> None:
    train, name = run.recipe.train, f"train {run.training.round}"
    kept = kept_steps(run)
    samples = Samples(run, progress.say) if run.accelerator.is_main_process else None
    if run.step == 0 and run.accelerator.is_main_process:
        clear_snapshots(run.training.folder)
    saved = time.monotonic()
    with (
        Watch(run.accelerator, run.training, train.trackers, run.step) as watch,
        progress.bar(name, run.steps, "step", run.step) as bar,
    ):
        while run.step < run.steps:
            if run.agree(stopping.asked):
                run.save()
                stopping.end(f"Stopped {name} after step {run.step} of {run.steps}; it is saved.")
            rate = run.learner.rate
            run.advance()
            bar.advance()
            if samples is not None and samples.due():
                with watch.aside():
                    watch.show(run.step, samples.draw())
            if run.step in kept:
                run.look()  # Of factors that are numbers.
                if run.accelerator.is_main_process:
                    write_snapshot(run)
            saves, ends = run.step % train.save_every == 0, run.step == run.steps
            if saves or ends or run.step % train.log_every == 0:
                run.look()
                losses = run.losses
                bar.note(watch.see(run.step, losses.values[-1], losses.mean, rate, run.shown))
                minutes = (time.monotonic() - saved) / 60
                if saves or minutes >= train.save_minutes:
                    with watch.aside():
                        run.save()
                    saved = time.monotonic()
