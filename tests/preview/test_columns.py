from pathlib import Path
from typing import Any

import pytest

from pipeline.artefacts.workspace import BuildFolder
from pipeline.preview.columns import read_sheet, with_final
from pipeline.recipe.preview import Preview

PREVIEW = Preview(prompts=("a", "b"))
GREY = (9, 9, 9)


@pytest.fixture
def folder(tmp_path: Path, make: Any) -> BuildFolder:
    folder = BuildFolder(tmp_path)
    make.samples(folder, 0, "origin", GREY, PREVIEW)
    return folder


def titles(folder: BuildFolder, rows: list[Any], upto: int = 99) -> list[str]:
    return [column.title for column in read_sheet(folder, rows, upto).columns]


def test_origin_then_rounds_in_order_up_to_the_one_asked_for(folder: Any, make: Any) -> None:
    rows = [make.row(2), make.row(1), make.row(3)]
    for row in rows:
        make.samples(folder, row.round, row.checkpoint_sha256, GREY, PREVIEW)
    assert titles(folder, rows) == ["origin", "round 1", "round 2", "round 3"]
    assert titles(folder, rows, upto=2) == ["origin", "round 1", "round 2"]
    sheet = read_sheet(folder, rows, 1)
    assert sheet.labels() == ("a", "b")
    assert sheet.columns[1].heading == "round 1\nstrength 0.81"
    assert [path.name for path in sheet.columns[1].pictures] == ["00.png", "01.png"]


def test_a_round_that_was_left_out_repeats_what_stood(folder: Any, make: Any) -> None:
    rows = [make.row(1), make.row(2, strength=0, decision="rejected")]
    make.samples(folder, 1, rows[0].checkpoint_sha256, GREY, PREVIEW)
    columns = read_sheet(folder, rows, 2).columns
    assert columns[2].note == "left out"
    assert columns[2].pictures == columns[1].pictures


def test_a_rounds_own_grid_is_origin_what_stood_before_and_itself(folder: Any, make: Any) -> None:
    rows = [make.row(1), make.row(2), make.row(3, strength=0, decision="rejected"), make.row(4)]
    for row in rows:
        if row.strength:
            make.samples(folder, row.round, row.checkpoint_sha256, GREY, PREVIEW)
    shown = {
        upto: [column.title for column in read_sheet(folder, rows, upto).round_columns()]
        for upto in range(5)
    }
    assert shown == {
        0: ["origin"],
        1: ["origin", "round 1"],
        2: ["origin", "round 1", "round 2"],
        3: ["origin", "round 2", "round 3"],
        4: ["origin", "round 2", "round 4"],
    }


def test_the_final_checkpoint_has_a_column_where_no_round_is_it(folder: Any, make: Any) -> None:
    row = make.row(1)
    make.samples(folder, 1, row.checkpoint_sha256, GREY, PREVIEW)
    fit = make.refit(rounds=(1,), merged_at=(0.81,), fitted=(0.7,), strengths=(0.7,))
    ended = {"final": "final.safetensors", "final_sha256": "ff" * 32, "refit": fit}

    def shown(**changes: Any) -> list[str]:
        ledger = make.ledger(row, **{**ended, **changes})
        sheet = with_final(read_sheet(folder, [row], 1), folder, ledger)
        return [column.title for column in sheet.columns]

    assert shown() == ["origin", "round 1"], "it is not drawn yet"
    drawn = make.samples(folder, 5, "ff" * 32, GREY, PREVIEW)[0].parent
    drawn.rename(folder.final_samples)
    assert shown() == ["origin", "round 1", "final"]
    assert shown(refit=fit.model_copy(update={"kept": False})) == ["origin", "round 1"]
    assert shown(final_sha256="ee" * 32) == ["origin", "round 1"], "drawn of other weights"


def test_rows_are_told_apart_by_seed_where_prompts_repeat(folder: Any, make: Any) -> None:
    make.samples(folder, 0, "origin", GREY, Preview(prompts=("a", "b"), seed=5, seeds=2))
    labels = read_sheet(folder, [], 0).labels()
    assert labels == ("a\nseed 5", "a\nseed 6", "b\nseed 5", "b\nseed 6")


def test_samples_of_other_weights_or_settings_are_not_shown(folder: Any, make: Any) -> None:
    rows = [make.row(number) for number in (1, 2, 3, 4)]
    make.samples(folder, 1, "weights of an earlier attempt", GREY, PREVIEW)
    other = Preview(prompts=("a", "b"), steps=PREVIEW.steps + 1)
    make.samples(folder, 2, rows[1].checkpoint_sha256, GREY, other)
    for number in (3, 4):
        make.samples(folder, number, rows[number - 1].checkpoint_sha256, GREY, PREVIEW)
    (folder.round(3).samples / "01.png").unlink()
    assert titles(folder, rows) == ["origin", "round 4"]


def test_nothing_without_the_origin(tmp_path: Path, make: Any) -> None:
    assert read_sheet(BuildFolder(tmp_path), [make.row(1)], 1).columns == ()
