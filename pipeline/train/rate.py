"""The learning rate inside a round: a linear warm-up, then a piece of a cosine down to a floor.

One law for both of what rounds may follow: each round its own whole cosine from the peak (phase 0
to 1), or the jagged cosine of ReLoRA (Lialin et al. 2023, arXiv 2307.05695, section 3), one cosine
over all rounds of which each takes its piece, with a warm-up at every restart. Pure.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """The piece of the cosine that a round runs through: 0 is its top, 1 its end."""

    first: float = 0.0
    last: float = 1.0


WHOLE = Phase()


def jagged(steps: tuple[int, ...]) -> tuple[Phase, ...]:
    """One cosine over rounds of so many steps: each one's piece."""
    total, done, phases = sum(steps), 0, []
    for count in steps:
        phases.append(Phase(done / total, (done + count) / total))
        done += count
    return tuple(phases)


def cosine(step: int, steps: int, warmup: int, floor: float, phase: Phase = WHOLE) -> float:
    """The factor on the peak at `step` of `steps`, counted from 0.

    Args:
        warmup: steps over which the rate rises from 0 to where the cosine is by then.
        floor: the factor at the cosine's end.
    """
    share = step / max(1, steps)
    place = phase.first + (phase.last - phase.first) * share
    factor = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * place))
    return factor * min(1.0, (step + 1) / (warmup + 1))
