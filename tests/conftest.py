"""What all tests share: one thread's worth of torch, a folder with recipes to start
from, pictures, and a small disk."""

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

# Read when torch is first imported; spinning threads starve everything else on a small machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import pytest
from PIL import Image, ImageFilter

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


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """picture(width, height, mode, seed): soft noise with a few hard edges, one per seed."""

    def make(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
        generator = np.random.default_rng((seed, width, height))
        noise = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
        soft = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2))
        values = (np.asarray(soft).astype(float) - 128) * 4 + 128
        values[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 40, 255)
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert(mode)

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """small_disk(KiB) -> a file system of that size; called again it changes the size."""
    place = tmp_path / "disk"

    def sized(kib: int) -> Path:
        options = f"size={kib}k" if not place.exists() else f"remount,size={kib}k"
        place.mkdir(exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
        return place

    yield sized
    subprocess.run(["umount", str(place)], capture_output=True)


@pytest.fixture
def no_file_to_spare() -> Callable[[], AbstractContextManager[None]]:
    """`with no_file_to_spare():` this process can open no file more, as after `ulimit -n`."""

    @contextmanager
    def full() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)  # The lowest number that there is.
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    return full
