from pathlib import Path

import pytest

from pipeline.artefacts.files import write_text
from pipeline.artefacts.receipts import NAME, done, read_receipt, write_receipt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_text(tmp_path / "shards" / "0.txt", "abc")
    write_text(tmp_path / "empty.jsonl", "")
    write_receipt(
        tmp_path,
        "resize",
        "f1",
        inputs={"images": "x"},
        outputs=[tmp_path / "shards" / "0.txt", tmp_path / "empty.jsonl"],
        summary={"pictures": 3},
        seconds=1.23456,
    )
    return tmp_path


def test_what_is_written_is_read(folder: Path) -> None:
    receipt = read_receipt(folder)
    assert receipt is not None
    assert (receipt.stage, receipt.fingerprint, receipt.seconds) == ("resize", "f1", 1.235)
    assert receipt.inputs == {"images": "x"} and receipt.summary == {"pictures": 3}
    assert receipt.outputs["shards/0.txt"].bytes == 3
    # BLAKE3 of "abc" and of nothing, from its published test vectors.
    assert receipt.outputs["shards/0.txt"].blake3.startswith("6437b3ac38465133ffb63b75273a8db5")
    assert receipt.outputs["empty.jsonl"].blake3.startswith("af1349b9f5f9a1a6a0404dea36dcc949")
    assert receipt.finished_at.endswith("Z")


def test_done_is_a_fingerprint_and_outputs_at_their_sizes(folder: Path) -> None:
    assert done(folder, "f1") is not None
    assert done(folder, "f2") is None
    assert done(folder, "f1", "other.json") is None
    (folder / "shards" / "0.txt").write_text("abcd")
    assert done(folder, "f1") is None
    (folder / "shards" / "0.txt").write_text("abc")
    assert done(folder, "f1") is not None
    (folder / "empty.jsonl").unlink()
    assert done(folder, "f1") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"outputs": []}', '{"outputs": {}, "stage": "x", "extra": 1}']
)
def test_what_is_no_receipt_proves_nothing(folder: Path, text: str) -> None:
    (folder / NAME).write_text(text)
    assert read_receipt(folder) is None
    assert done(folder, "f1") is None


def test_no_folder_no_receipt(tmp_path: Path) -> None:
    assert read_receipt(tmp_path / "none") is None
