import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.artefacts.identity import Identities
from pipeline.models import digest
from pipeline.models.digest import ComponentDigests, component_digests
from pipeline.recipe.base import Base


@pytest.fixture
def folder(tiny: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.folder, tmp_path / "folder"))


def _fresh(base: Base, tmp_path: Path) -> ComponentDigests:
    memory = tmp_path / "identities.json"
    memory.unlink(missing_ok=True)
    return component_digests(base, Identities(memory))


def _changed(before: ComponentDigests, after: ComponentDigests) -> set[str]:
    return {
        name for name in ("vae", "text", "whole") if getattr(before, name) != getattr(after, name)
    }


@pytest.mark.parametrize(
    ("tensor", "changed"),
    [
        ("first_stage_model.encoder.conv_in.weight", {"vae", "whole"}),
        (
            "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
            {"text", "whole"},
        ),
        ("model.diffusion_model.out.2.bias", {"whole"}),
    ],
)
def test_file_digests_change_with_their_component_alone(
    tiny: Any, tmp_path: Path, tensor: str, changed: set[str]
) -> None:
    before = _fresh(tiny.as_file, tmp_path)
    values = tiny.tensors[tensor].clone()
    values.view(-1)[0] += 1
    path = tmp_path / "m.safetensors"
    tiny.build.write_single_file(path, {**tiny.tensors, tensor: values})
    assert _changed(before, _fresh(Base(checkpoint=path, config=tiny.folder), tmp_path)) == changed


def test_markers_count_and_metadata_does_not(tiny: Any, tmp_path: Path) -> None:
    before = _fresh(tiny.as_file, tmp_path)
    path = tmp_path / "m.safetensors"
    tiny.build.write_single_file(path, tiny.tensors, metadata={"title": "another"})
    base = Base(checkpoint=path, config=tiny.folder)
    assert _changed(before, _fresh(base, tmp_path)) == set()
    tiny.build.write_single_file(path, tiny.tensors, markers=("v_pred",))
    assert _changed(before, _fresh(base, tmp_path)) == {"whole"}


def test_type_and_shape_count(tiny: Any, tmp_path: Path) -> None:
    before = _fresh(tiny.as_file, tmp_path)
    path = tmp_path / "m.safetensors"
    halved = {k: v.half() if k.startswith("first_") else v for k, v in tiny.tensors.items()}
    tiny.build.write_single_file(path, halved)
    base = Base(checkpoint=path, config=tiny.folder)
    assert _changed(before, _fresh(base, tmp_path)) == {"vae", "whole"}


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        (lambda f: _edit(f / "vae" / "config.json", sample_size=99), {"vae", "whole"}),
        (lambda f: _edit(f / "vae" / "config.json", _diffusers_version="9.9"), set()),
        (lambda f: _edit(f / "unet" / "config.json", sample_size=99), {"whole"}),
        (lambda f: (f / "tokenizer" / "added.txt").write_text("x"), {"text", "whole"}),
        (
            lambda f: _edit(f / "scheduler" / "scheduler_config.json", beta_end=0.02),
            {"whole"},
        ),
    ],
)
def test_configurations_count(
    folder: Path, tmp_path: Path, edit: Callable[[Path], object], changed: set[str]
) -> None:
    base = Base(checkpoint=folder)
    before = _fresh(base, tmp_path)
    edit(folder)
    assert _changed(before, _fresh(base, tmp_path)) == changed


def test_folder_digests_change_with_their_component_alone(
    tiny: Any, folder: Path, tmp_path: Path
) -> None:
    base = Base(checkpoint=folder)
    before = _fresh(base, tmp_path)
    path = next((folder / "vae").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert _changed(before, _fresh(base, tmp_path)) == {"vae", "whole"}


def test_remembered_until_a_file_changes(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.build.write_single_file(tmp_path / "m.safetensors", tiny.tensors)
    base, identities = Base(checkpoint=path, config=tiny.folder), Identities(tmp_path / "i.json")
    first = component_digests(base, identities)
    read: list[Path] = []
    real = digest.tensors_digest

    def counted(header: Any, wanted: Any) -> str:
        read.append(header.path)
        return real(header, wanted)

    monkeypatch.setattr(digest, "tensors_digest", counted)
    assert component_digests(base, identities) == first and not read
    changed = {**tiny.tensors, "model.diffusion_model.out.2.bias": torch.full((4,), 7.0)}
    tiny.build.write_single_file(path, changed)
    assert component_digests(base, identities).whole != first.whole and read
