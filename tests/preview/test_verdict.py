from typing import Any

import pytest

from pipeline.artefacts.ledger import BaselineRow, BucketLoss, Single, Trial
from pipeline.preview.standing import anchors, levels, stands
from pipeline.preview.verdict import reasons, verdict


def bands(*afters: float) -> tuple[BucketLoss, ...]:
    return tuple(
        BucketLoss(first=250 * n, last=250 * n + 249, before=1.0, after=after)
        for n, after in enumerate(afters)
    )


def test_what_stands_ends_with_the_fit_only_if_it_was_kept(make: Any) -> None:
    rows = (make.row(1), make.row(2))
    kept = make.ledger(*rows, refit=make.refit())
    assert [s.name for s in stands(kept)] == ["origin", "round 1", "round 2", "all fitted"]
    last = stands(kept)[-1]
    assert (last.loss, last.low, last.high) == (0.45, pytest.approx(0.44), pytest.approx(0.46))
    assert "to <b>0.4500</b>" in verdict(kept)
    assert "<b>0.70, 0.60</b>, which lowered the loss by 0.0200 more" in reasons(kept)
    dropped = make.ledger(*rows, refit=make.refit(kept=False))
    assert stands(dropped)[-1].name == "round 2"
    assert "so they stayed" in reasons(dropped)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.3, 0.75, "lower</b> (95 % range 20 % to 50 %)."),
        (-0.03, 0.3, "(95 % range \N{MINUS SIGN}2.0 % to 20 %, which may be chance)."),
    ],
)
def test_the_verdict_says_how_sure_it_is(make: Any, low: float, high: float, said: str) -> None:
    gain = {"before": 1.5, "after": 0.705, "low": low, "high": high}
    assert said in verdict(make.ledger(make.row(1), gain=gain))
    assert "95 %" not in verdict(make.ledger(make.row(1)))
    worse = {"before": 1.5, "after": 1.6, "low": -0.3, "high": -0.03}
    row = make.row(1, heldout_after=1.6)
    assert "6.7 % higher (95 % range 2.0 % to 20 %)." in verdict(make.ledger(row, gain=worse))


def test_noise_levels_compare_the_origin_with_the_end(make: Any) -> None:
    rows = (
        make.row(1, buckets=bands(0.9, 1.0)),
        make.row(2, buckets=bands(0.8, 1.05)),
        make.row(3, buckets=bands(9, 9), strength=0, decision="rejected"),
        make.row(4, buckets=bands(7, 7), dataset="another"),
    )
    found = levels(make.ledger(*rows))
    assert [(one.first, round(one.change, 6)) for one in found] == [(0, -0.2), (250, 0.05)]
    assert "At timesteps 250 to 499 the loss rose" in reasons(make.ledger(*rows))
    fitted = make.ledger(*rows[:2], refit=make.refit(buckets=bands(0.7, 0.9)))
    assert [round(one.change, 6) for one in levels(fitted)] == [-0.3, -0.1]
    assert levels(make.ledger(make.row(1))) == ()


def test_the_anchor_why_it_ended_and_the_trials(make: Any) -> None:
    ledger = make.ledger(
        make.row(1, anchor_before=0.2, anchor_after=0.25),
        make.row(2, anchor_before=0.25, anchor_after=0.25, strength=0, decision="rejected"),
        stopped="2 rounds in a row did <not> help",
        trials=(Trial(learning_rate=1e-4, loss=0.3), Trial(learning_rate=3e-4, loss=0.2)),
    )
    assert anchors(ledger) == [("origin", 0.2), ("round 1", 0.25)]
    text = reasons(ledger)
    assert "should not forget rose by 25 %." in text
    assert "The build ended early: 2 rounds in a row did &lt;not&gt; help." in text
    assert "The learning rate 3e-4 won in short trials of 1e-4, 3e-4." in text
    assert anchors(make.ledger(make.row(1))) == []


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.02, "so the rounds are better"),
        (-0.02, -0.01, "<b>the plain LoRA is better</b>"),
        (-0.01, 0.01, "which the rounds equal within noise"),
    ],
)
def test_the_single_lora_stands_beside_the_rounds(
    low: float, high: float, words: str, make: Any
) -> None:
    single = Single(
        snapshots=(),
        stopped_at=5,
        strengths=(),
        origin=1.5,
        last=0.51,
        early_stopped=0.52,
        refitted=0.53,
    )
    row = BaselineRow(
        learning_rate=1e-3, steps=9, seconds=1, single=single, rounds=0.54, low=low, high=high
    )
    text = reasons(make.ledger(make.row(1), baseline=row))
    assert "reaches 0.5100 as it ends, 0.5200 stopped early and 0.5300" in text
    assert "the rounds reach 0.5400" in text
    assert words in text
