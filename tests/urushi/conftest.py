"""`urushi …` as a person types it: a process of its own, or, for what it refuses, none."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from urushi.cli import main

Urushi = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def urushi(tmp_path: Path) -> Urushi:
    """urushi("plan", path) -> the ended process; its workspace is tmp_path/workspace."""

    def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("urushi"), *words],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env={**os.environ, "URUSHI_WORKSPACE": str(tmp_path / "workspace"), **environment},
        )

    return run


@pytest.fixture
def urushi_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Urushi:
    """The same in this process, without the seconds in which one imports torch."""

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with monkeypatch.context() as here:
            here.chdir(tmp_path)
            here.setenv("URUSHI_WORKSPACE", str(tmp_path / "workspace"))
            here.setenv("PYTHONSAFEPATH", "1")  # Which main() sets: for here alone.
            here.setattr(sys, "argv", ["urushi", *map(str, words)])
            with pytest.raises(SystemExit) as end:
                main()
        told, complained = capfd.readouterr()
        assert isinstance(end.value.code, int)
        return subprocess.CompletedProcess(words, end.value.code, told, complained)

    return run
