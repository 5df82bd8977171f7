import json
from pathlib import Path

import pytest

from pipeline.artefacts.ledger import (
    BaselineRow,
    BucketLoss,
    Candidate,
    EncoderStrengths,
    GrowthFile,
    LayerRow,
    Ledger,
    Refitted,
    RoundRow,
    Single,
    Snapshot,
    Trial,
    read_ledger,
    write_ledger,
)
from pipeline.artefacts.records import Record
from pipeline.errors import RequestError, UrushiError

ROW = RoundRow(
    round=1,
    dataset="set",
    lora="rounds/01/lora.safetensors",
    sha256="0" * 64,
    rank=8,
    alpha=8.0,
    learning_rate=1e-4,
    steps=60,
    strength=0.9,
    heldout_before=1.5,
    heldout_after=0.5,
    improvement_low=0.9,
    improvement_high=1.1,
    decision="accepted",
    candidates=(Candidate(strength=0.0, loss=1.5), Candidate(strength=1.0, loss=0.6)),
    attempts=1,
    train_loss=0.5,
    wanted=0.9,
    final_strength=0.9,
    buckets=(),
    anchor_before=None,
    anchor_after=None,
    drift=0.01,
    cosines={},
    effective_rank=2.0,
    intruders=0,
    peak_memory={},
    versions={},
    checkpoint_sha256="1" * 64,
    cast_loss=0.01,
    seconds=12.0,
    phases={"train": 10.0},
)
LEDGER = Ledger(
    build="coat",
    recipe="build.toml",
    seed=1,
    origin="base.safetensors",
    origin_blake3="2" * 64,
    prediction_type="epsilon",
    status="finished",
    stopped=None,
    trials=(),
    refit=None,
    baseline=None,
    heldout_pictures=8,
    heldout_origin=1.5,
    rounds=(ROW,),
    final="final.safetensors",
    final_sha256="3" * 64,
    final_lora="final.lora.safetensors",
    seconds={"download": 1.0},
)


def test_it_survives_the_disk(tmp_path: Path) -> None:
    write_ledger(tmp_path / "build.json", LEDGER)
    assert read_ledger(tmp_path / "build.json") == LEDGER


def test_missing_and_damaged_ones_are_told(tmp_path: Path) -> None:
    path = tmp_path / "build.json"
    with pytest.raises(RequestError, match="no round of this build is finished yet"):
        read_ledger(path)
    path.write_text("")
    with pytest.raises(UrushiError, match=r"build\.json is damaged: Invalid JSON"):
        read_ledger(path)
    path.write_text(LEDGER.model_dump_json().replace('"accepted"', '"agreed"'))
    with pytest.raises(UrushiError, match=r"is damaged at rounds\.0\.decision"):
        read_ledger(path)


def test_a_refit_that_measured_no_origin_is_read_and_equal_strengths_are_one(
    tmp_path: Path,
) -> None:
    refit = Refitted(
        rounds=(1, 2),
        merged_at=(0.8, 0.5),
        fitted=(0.8, 0.5),
        strengths=(0.8, 0.5),
        encoders=EncoderStrengths(merged_at=(0.8, 0.0), fitted=(0.8, 0.0), strengths=(0.8, 0.0)),
        kept=False,
        passes=3,
        chosen_before=1.0,
        chosen_after=1.0,
        before=1.0,
        after=1.0,
        low=0.0,
        high=0.0,
        buckets=(),
        anchor_before=None,
        anchor_after=None,
    )
    assert refit.final == (0.8, (0.5, 0.0))
    table = json.loads(LEDGER.model_copy(update={"refit": refit}).model_dump_json())
    del table["refit"]["origin"]
    (tmp_path / "build.json").write_text(json.dumps(table))
    assert read_ledger(tmp_path / "build.json").refit == refit
    assert ROW.model_copy(update={"encoder_strength": 0.9}).merged_at == ROW.merged_at == 0.9


@pytest.mark.parametrize(
    "kind",
    [
        *(Ledger, RoundRow, Refitted, Trial, BucketLoss, Candidate, GrowthFile, LayerRow),
        *(BaselineRow, Single, Snapshot),
    ],
)
def test_every_field_is_documented(kind: type[Record]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text(encoding="utf-8")
    assert [name for name in kind.model_fields if f"`{name}`" not in text] == []
