"""What all tests share: one thread's worth of torch, and a folder with recipes to start from."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

# Read when torch is first imported; spinning threads starve everything else on a small machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import pytest

# A shell starts what it puts into the background deaf to Ctrl-C, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATASET = """\
name = "pictures"

[folder]
path = "pictures"
"""

BUILD = """\
name = "coat"

[base]
checkpoint = "base.safetensors"

[dataset]
recipe = "pictures.toml"
"""

WriteRecipe = Callable[..., Path]


@pytest.fixture
def write_recipe(tmp_path: Path) -> WriteRecipe:
    """write_recipe("[rounds]\\ncount = 2\\n") -> path of a build recipe with these lines added.

    Beside it lie pictures.toml and the empty folder that it names.
    """

    def write(build: str = "", dataset: str = "", name: str = "build.toml") -> Path:
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures.toml").write_text(DATASET + dataset)
        path = tmp_path / name
        path.write_text(BUILD + build)
        return path

    return write
