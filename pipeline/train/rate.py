"""Which piece of a falling learning rate a round runs through.

Its own whole fall from the peak (phase 0 to 1), or, as in the jagged cosine of ReLoRA (Lialin et
al. 2023, arXiv 2307.05695, section 3), its piece of one fall over all rounds, with a warm-up at
every restart. Pure.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """The piece that a round runs through: 0 is the peak, 1 the end."""

    first: float = 0.0
    last: float = 1.0


WHOLE = Phase()


def jagged(steps: tuple[int, ...]) -> tuple[Phase, ...]:
    """One fall over rounds of so many steps: each one's piece."""
    total, done, phases = sum(steps), 0, []
    for count in steps:
        phases.append(Phase(done / total, (done + count) / total))
        done += count
    return tuple(phases)
