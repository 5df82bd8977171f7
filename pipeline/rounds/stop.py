"""Whether a build ends before its rounds are through, and why. Pure: records in, a sentence out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Rule = Literal["rejections", "noise", "drift", "anchor", "time", "decision"]
SECONDS_AN_HOUR = 3600.0
SPENT = 0.99
"""Of an anchor budget: what is left beyond it is not worth a round."""


@dataclass(frozen=True)
class Past:
    """What a stop rule may know of a round that was decided on."""

    round: int
    merged: bool
    low: float
    """Lower end of the interval of the mean paired difference before - after."""
    drift: float
    """Norm of all deltas so far over that of the weights they are added to."""
    anchor: float | None
    """The anchor loss after it; None without an anchor set."""
    seconds: float
    """That the round took, all attempts and searches together."""


@dataclass(frozen=True)
class Limits:
    """What a recipe allows. None is no limit."""

    patience: int | None
    """Rounds in a row that were left out, or whose gain was within noise."""
    drift: float | None
    """Share of the weights' norm."""
    anchor: float | None
    """The most that the anchor loss may be."""
    hours: float | None


@dataclass(frozen=True)
class Stop:
    """Why no further round is begun."""

    rule: Rule
    round: int
    """The last round that was decided on; 0 before the first."""
    reason: str
    """A clause: "two rounds in a row …"."""


def why_stop(past: Sequence[Past], limits: Limits) -> Stop | None:
    """The first rule that ends the build after these rounds, or None: the next one may begin.

    The same records give the same answer, however often a run was killed in between.
    """
    if not past:
        return None
    last = past[-1]
    if limits.patience is not None and len(past) >= limits.patience:
        recent = past[-limits.patience :]
        if not any(row.merged for row in recent):
            return Stop(
                "rejections",
                last.round,
                f"{limits.patience} rounds in a row did not lower the held-out loss",
            )
        if all(row.merged and row.low <= 0 for row in recent):
            return Stop(
                "noise",
                last.round,
                f"the gains of {limits.patience} rounds in a row were within noise",
            )
    if limits.drift is not None and last.drift >= limits.drift:
        return Stop(
            "drift",
            last.round,
            f"the deltas reached {last.drift:.2%} of the weights' norm; {limits.drift:.2%} are "
            "allowed",
        )
    # A strength that was shrunk to the limit stays a little below it.
    if (
        limits.anchor is not None
        and last.anchor is not None
        and last.anchor >= SPENT * limits.anchor
    ):
        return Stop(
            "anchor",
            last.round,
            f"the anchor loss reached {last.anchor:.5f}, and {limits.anchor:.5f} is the most "
            "that it may be",
        )
    seconds = sum(row.seconds for row in past)
    if limits.hours is not None and seconds >= limits.hours * SECONDS_AN_HOUR:
        return Stop(
            "time",
            last.round,
            f"the rounds took {seconds / SECONDS_AN_HOUR:.2f} hours; {limits.hours:g} are allowed",
        )
    return None
