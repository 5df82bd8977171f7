import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from merge import MergeError
from pipeline.errors import RequestError
from urushi.mix import mix
from urushi.recipes import tiny_base

Urushi = Callable[..., subprocess.CompletedProcess[str]]

MIDDLE = "model.diffusion_model.middle_block.0.in_layers.2.weight"
TEXT = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
VAE = "first_stage_model.decoder.conv_in.weight"


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """Five models whose weights are all 1, 2, 4, 8, 16."""
    found = {}
    for power, name in enumerate("abcde"):
        found[name] = tmp_path / f"{name}.safetensors"
        weights = load_file(tiny_base() / "tiny.safetensors")
        save_file({key: torch.full_like(t, 2**power) for key, t in weights.items()}, found[name])
    return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """run(a, b, "--alpha", 0.5) -> what it printed; writes out.safetensors. Errors are raised."""
    monkeypatch.setenv("URUSHI_WORKSPACE", str(tmp_path / "workspace"))
    app = typer.Typer()
    app.command()(mix)

    def call(*words: object) -> str:
        given = [*map(str, words), "--out", str(tmp_path / "out.safetensors")]
        ended = CliRunner().invoke(app, given, catch_exceptions=False)
        assert ended.exit_code == 0, ended.output
        return ended.stdout

    return call


def numbers(folder: Path) -> list[float]:
    """What the middle, the text encoder and the VAE are made of."""
    tensors = load_file(folder / "out.safetensors")
    found = [tensors[key].unique().tolist() for key in (MIDDLE, TEXT, VAE)]
    assert all(len(values) == 1 for values in found)
    return [values[0] for values in found]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a b --alpha 0.25", [1.25, 1.25, 1.25]),
        ("b c --with a --alpha 2", [8, 8, 8]),
        ("b c --with a --mode difference --alpha 1 --te 0 --vae C", [5, 2, 1]),
        ("a b --alpha 0.5 --blocks M00=0.25,BASE=1 --vae A", [1.25, 2, 1]),
        ("a b --alpha 0.5 --te 1 --vae e.safetensors", [1.5, 2, 16]),
        ("a b --alpha 0.5 --vae 0.25", [1.5, 1.5, 1.25]),
        ("a b c d --weights 0.5,0.25,0,0.25 --vae D", [3, 3, 8]),
    ],
)
def test_what_is_asked_is_what_is_mixed(
    run: Callable[..., str],
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    expected: list[float],
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run(*(models.get(word, word) for word in words.split()))
    assert numbers(tmp_path) == expected
    assert "519 tensors, 11.2 MB" in said and f"A: {models[words[0]]}" in said


def test_a_recipe_and_its_report(
    run: Callable[..., str], models: dict[str, Path], tmp_path: Path
) -> None:
    recipe, report = tmp_path / "mix.toml", tmp_path / "report.json"
    recipe.write_text(
        '[models]\nfirst = "a.safetensors"\nsecond = "c.safetensors"\n'
        '[[step]]\nname = "half"\nsum = ["first", "second"]\nalpha = 0.5\n'
        '[[step]]\nname = "more"\ndifference = ["half", "second", "first"]\nalpha = 1.0\nte = 0.0\n'
    )
    run("--recipe", recipe, "--report", report, "--dtype", "float32")
    assert numbers(tmp_path) == [5.5, 2.5, 5.5]
    assert load_file(tmp_path / "out.safetensors")[MIDDLE].dtype == torch.float32
    told = json.loads(report.read_text())
    assert told["inputs"]["models"]["second"]["path"] == str(models["c"])
    assert [step["name"] for step in told["inputs"]["steps"]] == ["half", "more"]
    assert told["tensors"] == told["mixed"] + sum(told["single"].values())
    memory = json.loads(next((tmp_path / "workspace").rglob("identities.json")).read_text())
    assert memory[str(models["a"].resolve())][1] == told["models"]["first"]
    with pytest.raises(RequestError, match=r"models, --alpha beside --recipe"):
        run(models["a"], "--recipe", recipe, "--alpha", 0.5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("a --alpha 0.5", "1 models are named. Name two"),
        ("a b c --alpha 0.5", "3 models are named"),
        ("--alpha 0.5", "0 models are named"),
        ("a b --alpha 0.5 --mode difference", "name C with --with"),
        ("a b --alpha 0.5 --mode sum --with c", "Leave one of them out"),
        ("a b --weights 0.5,x", "are not numbers with commas"),
        ("a b --weights 0.5,0.5 --alpha 0.5", "--alpha beside --weights"),
        ("a b --weights 0.5,0.5 --vae 0.5", "--vae is a number beside --weights"),
        ("a b --alpha 0.5 --report out.safetensors", "an input or the output"),
    ],
)
def test_wrong_requests(
    run: Callable[..., str],
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=said):
        run(*(models.get(word, word) for word in words.split()))
    assert not (tmp_path / "out.safetensors").exists()


def test_an_input_is_kept_unless_forced(
    run: Callable[..., str], models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    models["a"].rename(out)
    with pytest.raises(MergeError, match="would overwrite"):
        run(out, models["b"], "--alpha", 0.5)
    assert load_file(out)[MIDDLE].unique().tolist() == [1]
    run(out, models["b"], "--alpha", 0.5, "--force")
    assert numbers(tmp_path) == [1.5] * 3


def test_errors_cross_with_their_code(urushi: Urushi, tmp_path: Path) -> None:
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    ended = urushi("mix", "page.safetensors", "b.safetensors", "--alpha", "0.5", "--out", "out")
    assert ended.returncode == 2
    assert "page.safetensors is a text file" in ended.stderr and "Traceback" not in ended.stderr
    ended = urushi("mix", "page.safetensors", "b.safetensors", "--out", "out")
    assert ended.returncode == 2 and "There is no alpha" in ended.stderr
