"""What is to be done with a run, by what Prefect believes and what this machine knows. Pure.

Never by heartbeats: a busy machine is late with them, and a run that waits for a decision sends
none. A lock is held or it is free.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from flows.alive import Sign

RUNNING_SECONDS = 30.0
"""Between Prefect's "Running" and the lock: the flow takes it in its first lines."""
PENDING_SECONDS = 300.0
"""Between a worker's taking a run and its "Running": a process starts and imports."""
RETURNS, RETURN_SECONDS = 3, 3600.0
"""A run that died so often within so many seconds is left alone: it would only die again."""


class Act(Enum):
    """What the doctor does."""

    LEAVE = "leave"
    RETURN = "return"
    """Dead: mark it crashed, and schedule the same run again."""
    BURY = "bury"
    """Dead while it was being cancelled: mark it cancelled."""
    GIVE_UP = "give up"
    """Dead, too often: mark it crashed and leave it so."""


@dataclass(frozen=True)
class Case:
    """A run of ours as Prefect has it, and its signs of life here."""

    state: str
    """Prefect's state type: RUNNING, PENDING, CANCELLING, CRASHED, …"""
    seconds: float
    """In this state."""
    ours: bool
    """Whether its deployment was made on this machine."""
    sign: Sign
    busy: bool
    """Whether another process works on the same build or dataset."""
    returns: int
    """How often it came back within RETURN_SECONDS."""


def verdict(case: Case, this_host: str) -> Act:
    """What to do with one run."""
    holder = case.sign.holder
    here = holder.host == this_host if holder is not None else case.ours
    if not here or case.sign.alive:
        return Act.LEAVE
    patience = {
        "RUNNING": RUNNING_SECONDS,
        "PENDING": PENDING_SECONDS,
        "CANCELLING": PENDING_SECONDS,
    }
    if holder is not None:
        # It once lived, so there is nothing to wait for but the few moments of a new attempt.
        patience["PENDING"] = patience["CANCELLING"] = RUNNING_SECONDS
    if case.state == "CRASHED":
        # Prefect saw it die. A run that never began is its worker's trouble, not ours.
        dead = holder is not None and case.returns < RETURNS
    else:
        dead = case.state in patience and case.seconds >= patience[case.state]
    if not dead or (case.busy and case.state != "CANCELLING"):
        # Another process has the build: the run comes back when that one is done.
        return Act.LEAVE
    if case.state == "CANCELLING":
        return Act.BURY
    return Act.RETURN if case.returns < RETURNS else Act.GIVE_UP


@dataclass(frozen=True)
class Night:
    """A run that a schedule made and that did not begin."""

    id: str
    deployment: str
    expected: float
    """Seconds since 1970."""


def missed(nights: Sequence[Night], occupied: frozenset[str], now: float, late: float) -> list[str]:
    """The ids of runs to cancel, so that nights that were missed are made up for once, not each.

    Of a deployment's runs that are `late` seconds over their time the newest stays, and none does
    where one of the deployment's runs goes on already (`occupied`).
    """
    overdue: dict[str, list[Night]] = {}
    for night in nights:
        if night.expected < now - late:
            overdue.setdefault(night.deployment, []).append(night)
    doomed = []
    for deployment, runs in overdue.items():
        by_time = sorted(runs, key=lambda night: night.expected)
        doomed += by_time if deployment in occupied else by_time[:-1]
    return [night.id for night in doomed]
