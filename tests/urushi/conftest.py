"""`urushi …` as a person types it: a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
