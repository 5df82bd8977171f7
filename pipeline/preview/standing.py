"""The ledger into what stands: the losses after each round, by timestep, and at the very end."""

from dataclasses import dataclass

from pipeline.artefacts.ledger import Ledger, Refitted


@dataclass(frozen=True)
class Stand:
    """What stood after a round, or at the end."""

    name: str
    """ "origin", "round 2", "all fitted"."""
    round: int | None
    """0 is the origin; None the end, where strengths were fitted together."""
    loss: float
    low: float | None
    high: float | None
    """The 95 % range of the loss, by its paired difference from the one before; None: no range."""
    left_out: bool = False
    """The round was not merged: what stood before goes on, and the range is of what would be."""


def stands(ledger: Ledger) -> list[Stand]:
    """From the origin to the end. Empty before round 1."""
    if not ledger.rounds:
        return []
    # Another dataset's held-out pictures are others: their losses do not compare.
    rows = [row for row in ledger.rounds if row.dataset == ledger.rounds[0].dataset]
    origin = ledger.heldout_origin
    first = rows[0].heldout_before if origin is None else origin
    found = [Stand("origin", 0, first, None, None)]
    for row in rows:
        merged = row.strength > 0
        found.append(
            Stand(
                f"round {row.round}",
                row.round,
                row.heldout_after if merged else row.heldout_before,
                row.heldout_before - row.improvement_high,
                row.heldout_before - row.improvement_low,
                not merged,
            )
        )
    refit = _fitted_alike(ledger)
    if refit is not None:
        low, high = refit.before - refit.high, refit.before - refit.low
        found.append(Stand("all fitted", None, refit.after, low, high))
    return found


def fitted(ledger: Ledger) -> Refitted | None:
    """The strengths fitted together, if the final checkpoint has them."""
    return ledger.refit if ledger.refit is not None and ledger.refit.kept else None


def _fitted_alike(ledger: Ledger) -> Refitted | None:
    """The fit, where it was judged on the first round's pictures alone."""
    refit = fitted(ledger)
    seen = {row.dataset for row in ledger.rounds if refit and row.round in refit.rounds}
    return refit if seen == {ledger.rounds[0].dataset} else None


@dataclass(frozen=True)
class Level:
    """What became of one band of noise levels."""

    first: int
    last: int
    """Timesteps, both within."""
    change: float
    """Of the held-out loss from the origin to the end, as a share: -0.1 is 10 % lower."""


def levels(ledger: Ledger) -> tuple[Level, ...]:
    """By timestep, least noise first; empty where the ledger does not tell.

    Only rounds on the first round's dataset are compared: another's held-out pictures are others.
    """
    rows = [row for row in ledger.rounds if row.dataset == ledger.rounds[0].dataset]
    merged = [row for row in rows if row.strength > 0]
    if not merged:
        return ()
    refit = _fitted_alike(ledger)
    after = refit.buckets if refit is not None and refit.buckets else merged[-1].buckets
    before = rows[0].buckets
    return tuple(
        Level(b.first, b.last, a.after / b.before - 1)
        for b, a in zip(before, after, strict=False)
        if b.before > 0 and (b.first, b.last) == (a.first, a.last)
    )


def anchors(ledger: Ledger) -> list[tuple[str, float]]:
    """(name, anchor loss) of everything that stood; empty without an anchor set."""
    rows = [row for row in ledger.rounds if row.anchor_before is not None]
    if not rows or rows[0].anchor_before is None:
        return []
    points = [("origin", rows[0].anchor_before)]
    for row in rows:
        if row.anchor_after is not None and row.strength > 0:
            points.append((f"round {row.round}", row.anchor_after))
    refit = fitted(ledger)
    if refit is not None and refit.anchor_after is not None:
        points.append(("all fitted", refit.anchor_after))
    return points
