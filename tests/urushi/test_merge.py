import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import RequestError
from urushi.merge import parse

Urushi = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("given", "count", "numbers"),
    [
        (["1"], 2, [1.0, 1.0]),
        (["0.7", "0.9"], 2, [0.7, 0.9]),
        (["0.7,0.9", "1"], 3, [0.7, 0.9, 1.0]),
        (["-0.5"], 1, [-0.5]),
    ],
)
def test_strengths(given: list[str], count: int, numbers: list[float]) -> None:
    assert parse(given, count) == numbers


@pytest.mark.parametrize(
    ("given", "count", "said"),
    [
        (["0.7", "0.9"], 3, "2 strengths for 3 LoRAs"),
        (["x"], 1, "'x' is not a number"),
        (["inf"], 1, "not a finite number"),
        (["0.7,,1"], 2, "'' is not a number"),
    ],
)
def test_wrong_strengths(given: list[str], count: int, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        parse(given, count)


def test_errors_of_a_merge_cross_with_their_code(urushi: Urushi, tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_text("hello")
    header = json.dumps({}).encode()
    (tmp_path / "lora.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    ended = urushi("merge", "base.safetensors", "lora.safetensors", "--out", "out.safetensors")
    assert ended.returncode == 2
    assert "base.safetensors" in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "out.safetensors").exists()
    ended = urushi("merge", "base.safetensors", "lora.safetensors", "--strength", "x", "--out", "o")
    assert (ended.returncode, "not a number" in ended.stderr) == (2, True)
