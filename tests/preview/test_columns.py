from pathlib import Path
from typing import Any

import pytest

from pipeline.artefacts.workspace import BuildFolder
from pipeline.preview.columns import read_sheet
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
