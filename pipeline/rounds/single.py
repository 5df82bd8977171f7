"""One LoRA by its checkpoints: where it was best, and the steps between them fitted as strengths.

The way from nothing to the last checkpoint is cut at the others. With W_k what checkpoint k adds,
strengths s of the pieces make

    sum of s_k (W_k - W_{k-1})  =  sum of (s_k - s_{k+1}) W_k,

so that the checkpoints themselves are attached, at differences of strengths. Measured, it is the
strongest simple baseline for rounds; and whoever wants one LoRA alone may stop at it.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.artefacts.job import Job
from pipeline.artefacts.ledger import Single, Snapshot
from pipeline.progress import Progress
from pipeline.rounds.evaluate import HeldOut, Losses
from pipeline.rounds.jury import Jury
from pipeline.rounds.pictures import Pictures
from pipeline.rounds.refit import most_passes, refit
from pipeline.train.beside import covers_text


def differences(strengths: Sequence[float]) -> tuple[float, ...]:
    """The checkpoints' own factors for strengths of the pieces between them."""
    after = (*strengths[1:], 0.0)
    return tuple(here - there for here, there in zip(strengths, after, strict=True))


def upto(number: int, count: int) -> tuple[float, ...]:
    """The pieces' strengths that make checkpoint `number` (from 1; 0: nothing) of `count`."""
    return tuple(1.0 if piece < number else 0.0 for piece in range(count))


def weigh(
    job: Job, seen: Sequence[Pictures], files: Sequence[tuple[int, Path]], progress: Progress
) -> tuple[Single, Losses]:
    """Judges the checkpoints (step, file) of one training, in order; the second is the refitted
    one's losses by picture and timestep."""
    count = len(files)
    loras = [path for _, path in files]
    held_out = HeldOut(job.recipe, None, loras, live=any(map(covers_text, loras)))
    with progress.bar("checkpoints", count + most_passes(count), "pass") as bar:
        jury = Jury(held_out, seen, bar, differences)
        losses = [jury.choosing_loss(upto(k, count)) for k in range(1, count + 1)]
        best = min(range(count), key=lambda k: (losses[k], k)) + 1
        found = refit(jury.choosing_loss, jury.around, upto(best, count))
        refitted = jury.judged(found.strengths)
        single = Single(
            snapshots=tuple(
                Snapshot(step=step, loss=loss)
                for (step, _), loss in zip(files, losses, strict=True)
            ),
            stopped_at=files[best - 1][0],
            strengths=found.strengths,
            origin=float(jury.judged(upto(0, count)).mean()),
            last=float(jury.judged(upto(count, count)).mean()),
            early_stopped=float(jury.judged(upto(best, count)).mean()),
            refitted=float(refitted.mean()),
        )
    return single, refitted
