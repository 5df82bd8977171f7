import pytest

from flows.alive import Sign
from flows.verdicts import RETURNS, Act, Case, Night, missed, verdict
from pipeline.artefacts.locks import Holder

HERE, THERE = Holder(7, "here"), Holder(7, "there")
DEAD, ALIVE, ELSEWHERE, NEVER = (
    Sign(HERE, False),
    Sign(HERE, True),
    Sign(THERE, False),
    Sign(None, False),
)


def case(
    state: str = "RUNNING",
    sign: Sign = DEAD,
    seconds: float = 3600.0,
    ours: bool = True,
    busy: bool = False,
    returns: int = 0,
) -> Case:
    return Case(state, seconds, ours, sign, busy, returns)


@pytest.mark.parametrize(
    ("given", "act"),
    [
        (case(), Act.RETURN),
        (case(sign=ALIVE), Act.LEAVE),
        (case(sign=ELSEWHERE), Act.LEAVE),
        # Another machine's run that never took a lock, and ours.
        (case(sign=NEVER, ours=False), Act.LEAVE),
        (case(sign=NEVER), Act.RETURN),
        # It may be between Prefect's "Running" and its first line.
        (case(seconds=2.0), Act.LEAVE),
        # A hand run has the build: there is nothing to go on with until it is done.
        (case(busy=True), Act.LEAVE),
        (case("CRASHED"), Act.RETURN),
        (case("CRASHED", seconds=0.0), Act.RETURN),
        (case("CRASHED", sign=NEVER), Act.LEAVE),
        (case("CANCELLING"), Act.BURY),
        (case("CANCELLING", sign=ALIVE), Act.LEAVE),
        # A process that starts imports for a while; one that once lived does not start.
        (case("PENDING", sign=NEVER, seconds=60.0), Act.LEAVE),
        (case("PENDING", sign=NEVER, seconds=600.0), Act.RETURN),
        (case("PENDING", seconds=60.0), Act.RETURN),
        (case(returns=RETURNS), Act.GIVE_UP),
        (case("CRASHED", returns=RETURNS), Act.LEAVE),
    ],
)
def test_a_run_is_judged_by_its_lock(given: Case, act: Act) -> None:
    assert verdict(given, "here") is act


@pytest.mark.parametrize("state", ["PAUSED", "SCHEDULED", "COMPLETED", "FAILED", "CANCELLED"])
def test_who_waits_or_has_ended_is_left_alone(state: str) -> None:
    assert verdict(case(state), "here") is Act.LEAVE


def test_missed_nights_are_made_up_for_once() -> None:
    hour = 3600.0
    nights = [
        Night("monday", "a", 0.0),
        Night("wednesday", "a", 48 * hour),
        Night("tuesday", "a", 24 * hour),
        Night("other", "b", 10.0),
        Night("tonight", "a", 96 * hour),
    ]
    now = 60 * hour
    assert sorted(missed(nights, frozenset(), now, 600.0)) == ["monday", "tuesday"]
    # The run before is still at it: then none of them.
    assert sorted(missed(nights, frozenset({"a"}), now, 600.0)) == [
        "monday",
        "tuesday",
        "wednesday",
    ]
    # A few seconds late is not missed: a worker looks every so often.
    assert missed([*nights[:1], Night("twin", "a", 1.0)], frozenset(), 5.0, 600.0) == []
