import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from pipeline.recipe.base import Base


class TinyBase(NamedTuple):
    """The same random weights as a diffusers folder and as a single file."""

    build: ModuleType
    pipeline: Any
    folder: Path
    file: Path
    tensors: dict[str, Any]

    @property
    def as_folder(self) -> Base:
        return Base(checkpoint=self.folder)

    @property
    def as_file(self) -> Base:
        return Base(checkpoint=self.file, config=self.folder)


def _made(tmp_path_factory: pytest.TempPathFactory, family: str) -> TinyBase:
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent / "tiny.py")
    assert spec and spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    root = tmp_path_factory.mktemp(family)
    make = build.make_pipeline if family == "sd15" else build.make_sdxl_pipeline
    pipeline = make(root / "tokenizer")
    pipeline.save_pretrained(root / "pipeline")
    tensors = build.single_file_tensors(pipeline)
    file = build.write_single_file(root / "tiny.safetensors", tensors)
    return TinyBase(build, pipeline, root / "pipeline", file, tensors)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    return _made(tmp_path_factory, "sd15")


@pytest.fixture(scope="session")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    return _made(tmp_path_factory, "sdxl")
