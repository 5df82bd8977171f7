import importlib.util
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from merge.errors import MergeError
from pipeline.errors import RequestError
from urushi.compare_models import Asked, compare_models, parse_strengths, read_prompts

Urushi = Callable[..., subprocess.CompletedProcess[str]]

MODULE = "lora_unet_conv_out"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny checkpoint in one file, and the folder of its configurations."""
    source = Path(__file__).parents[1] / "models" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny_model", source)
    assert spec and spec.loader
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    root = tmp_path_factory.mktemp("model")
    pipeline = tiny.make_pipeline(root / "tokenizer")
    pipeline.save_pretrained(root / "pipeline")
    file = tiny.write_single_file(root / "base.safetensors", tiny.single_file_tensors(pipeline))
    return file, root / "pipeline"


def write_lora(path: Path, size: float, channels: int = 32) -> Path:
    generator = torch.Generator().manual_seed(1)
    save_file(
        {
            f"{MODULE}.lora_down.weight": torch.randn(2, channels, 3, 3, generator=generator),
            f"{MODULE}.lora_up.weight": size * torch.randn(4, 2, 1, 1, generator=generator),
        },
        path,
    )
    return path


@pytest.fixture
def asked(base: tuple[Path, Path], tmp_path: Path) -> Asked:
    return Asked(
        checkpoints=(base[0],),
        loras=(write_lora(tmp_path / "coat.safetensors", 0.5),),
        strengths="0,0.5,1",
        x="strength",
        y=None,
        prompts=("red circle", "blue square"),
        negative="",
        seed=3,
        seeds=1,
        steps=1,
        guidance=3.0,
        width=16,
        height=None,
        enlarge=2,
        config=base[1],
    )


def told(out: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    return facts


def test_strengths_side_by_side_and_only_what_is_new_is_drawn_again(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, workspace = tmp_path / "grid.png", tmp_path / "workspace"
    compare_models(replace(asked, strengths="0,1"), out, workspace)
    first = told(out)
    assert first["columns"] == ["strength 0", "strength 1"]
    assert first["rows"] == ["red circle", "blue square"]
    without, with_ = (workspace / first["pictures"][n]["file"] for n in (0, 2))
    assert first["pictures"][2]["prompt"] == "red circle"
    assert without.read_bytes() != with_.read_bytes()
    assert not list(workspace.rglob("*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*.png")}
    capsys.readouterr()
    compare_models(asked, out, workspace)
    assert told(out)["columns"] == ["strength 0", "strength 0.5", "strength 1"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(workspace.rglob("*.png"))) == len(before) + 2
    bytes_ = out.read_bytes(), out.with_suffix(".json").read_bytes()
    assert "merging" not in capsys.readouterr().err.replace("0.5 coat: merging", "")
    compare_models(asked, out, workspace)
    assert (out.read_bytes(), out.with_suffix(".json").read_bytes()) == bytes_
    assert "merging" not in capsys.readouterr().err
    with Image.open(out) as opened:
        colours = opened.convert("RGB").getcolors(2**20) or []
    assert len(colours) > 50


def test_a_lora_that_does_not_fit_leaves_nothing_behind(asked: Asked, tmp_path: Path) -> None:
    wrong = replace(asked, loras=(write_lora(tmp_path / "wrong.safetensors", 1.0, channels=7),))
    with pytest.raises(MergeError, match="wrong"):
        compare_models(wrong, tmp_path / "grid.png", tmp_path / "workspace")
    assert not (tmp_path / "grid.png").exists()
    assert not list((tmp_path / "workspace").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loras": ()}, "strength is no axis without a LoRA"),
        ({"x": "prompt", "y": "prompt"}, "--x and --y are both prompt"),
        ({"loras": (Path("gone.safetensors"),)}, r"There is no LoRA gone\.safetensors"),
        ({"strengths": "0,x"}, "--strength 0,x is not numbers"),
        ({"width": 20}, "--width 20 is not a multiple of 8. Use 16"),
        ({"checkpoints": (Path("none.safetensors"),)}, "There is no checkpoint"),
    ],
)
def test_what_is_asked_wrongly_is_told_before_anything_is_drawn(
    changes: Any, words: str, asked: Asked, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=words):
        compare_models(replace(asked, **changes), tmp_path / "grid.png", tmp_path / "workspace")
    assert not (tmp_path / "workspace").exists()


def test_prompts_are_lines_and_strengths_numbers(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# a comment\n\n  1girl, solo \nred circle\n1girl, solo\n")
    assert read_prompts(path) == ("1girl, solo", "red circle")
    path.write_text("# nothing\n")
    with pytest.raises(RequestError, match="holds no prompt"):
        read_prompts(path)
    with pytest.raises(RequestError, match=r"cannot be read .*one prompt a line"):
        read_prompts(tmp_path / "none.txt")
    assert parse_strengths("0, 0.5,0.5,-1") == (0.0, 0.5, -1.0)


def test_the_verb_says_what_is_wrong(urushi: Urushi, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a\n")
    ended = urushi("compare", tmp_path / "no.safetensors", "--prompts", "prompts.txt")
    assert ended.returncode == 2
    assert "There is no checkpoint" in ended.stderr
    ended = urushi("compare", "a.safetensors", "--prompts", "prompts.txt", "--x", "colour")
    assert ended.returncode == 2
    assert "strength" in ended.stderr
