"""`urushi selftest --device cpu` runs every check for real."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import RequestError
from urushi.selftest import run_selftest


@pytest.mark.drill
def test_every_check_passes_on_a_cpu() -> None:
    command = [str(Path(sys.executable).with_name("urushi")), "selftest", "--device", "cpu"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    judged = ("float32", "bf16", "fp8", "int8", "nf4", "resume", "own process", "devices ")
    for name in (*judged, "devices, text encoders", "adamw8bit"):
        assert any(line.strip().startswith(name) and " ok " in line for line in lines), name
    for name in ("plain", "channels_last", "gradient_checkpointing"):
        assert any(line.strip().startswith(name) and "pictures/s" in line for line in lines), name


def test_a_gpu_that_is_not_there_is_told() -> None:
    with pytest.raises(RequestError, match="torch finds no GPU"):
        run_selftest("cuda", None)
