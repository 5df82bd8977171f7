from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.artefacts.records import (
    CaptionRecord,
    Failure,
    ImageRecord,
    read_records,
    write_records,
)
from pipeline.errors import UrushiError

IMAGE = ImageRecord(
    md5="0" * 32,
    path="originals/00/00/0.png",
    width=640,
    height=0,
    tags={"general": ("cat", 'semi"colon'), "artist": ()},
    score=None,
    rating="general",
    source="danbooru:1",
)


def test_rows_survive_the_disk(tmp_path: Path) -> None:
    other = IMAGE.model_copy(update={"md5": "1" * 32, "score": -3, "tags": {"general": ("漆",)}})
    write_records(tmp_path / "images.jsonl", [IMAGE, other])
    assert read_records(tmp_path / "images.jsonl", ImageRecord) == [IMAGE, other]
    assert len((tmp_path / "images.jsonl").read_bytes().splitlines()) == 2
    write_records(tmp_path / "none.jsonl", [])
    assert read_records(tmp_path / "none.jsonl", ImageRecord) == []


def test_separators_inside_a_row_do_not_split_it(tmp_path: Path) -> None:
    """Unicode has line separators that JSON leaves alone and text splitting does not."""
    row = Failure(md5="0" * 32, reason="a\u2028b\x85c\nd")
    write_records(tmp_path / "failures.jsonl", [row])
    assert read_records(tmp_path / "failures.jsonl", Failure) == [row]


def test_damage_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    write_records(path, [CaptionRecord(md5="0" * 32, caption="cat", score=1)])
    with open(path, "a") as handle:
        handle.write('{"md5": "1"')
    with pytest.raises(UrushiError, match=r"captions\.jsonl, line 2 is damaged"):
        read_records(path, CaptionRecord)
    with pytest.raises(UrushiError, match="line 1 is damaged"):
        read_records(path, ImageRecord)
    with pytest.raises(UrushiError, match="is missing"):
        read_records(tmp_path / "none.jsonl", CaptionRecord)


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        IMAGE.width = 3  # type: ignore[misc]
