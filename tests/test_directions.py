"""What import contracts cannot see: what is imported when, and a core without Prefect."""

import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.stages import STAGES

ROOT = Path(__file__).parent.parent
HEAVY = {"accelerate", "diffusers", "matplotlib", "peft", "prefect", "torch", "transformers"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]

WITHOUT_PREFECT = """
import importlib, pkgutil, sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "prefect":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refusal())
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    "module",
    [
        "urushi.cli",
        "urushi.run",
        "urushi.check",
        "urushi.plan",
        "urushi.status",
        "flows.run",
        "pipeline.stages",
        "pipeline.artefacts.job",
        "pipeline.download.stage",
        "pipeline.caption.stage",
        "pipeline.resize.stage",
        "pipeline.models.inspect",
        "pipeline.models.places",
        "merge.errors",
        "demo.booru",
    ],
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    ended = python(f"import sys, {module}; print(*sys.modules)")
    assert ended.returncode == 0, ended.stderr
    imported = {name.partition(".")[0] for name in ended.stdout.split()}
    assert not imported & HEAVY


def test_the_command_line_alone_is_lighter_still() -> None:
    ended = python("import sys, urushi.cli; print(*sys.modules)")
    imported = {name.partition(".")[0] for name in ended.stdout.split()}
    assert not imported & {"aiohttp", "blake3", "numpy", "PIL", "pydantic", "pyvips", "requests"}


def test_the_core_imports_with_prefect_blocked() -> None:
    """Every module of the core, torch's included: nothing but flows may want Prefect."""
    ended = python(
        WITHOUT_PREFECT
        + """
import demo, merge, pipeline
for package in (merge, pipeline):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print("prefect" in sys.modules)
"""
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "False"


def test_stages_run_by_hand_with_prefect_blocked(tmp_path: Path) -> None:
    """A dataset from a folder is taken in and captioned by the verbs; `run` says what it lacks."""
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (96, 64), (40 * number, 90, 20)).save(
            tmp_path / "pictures" / f"{number}.png"
        )
        (tmp_path / "pictures" / f"{number}.txt").write_text("square, solo")
    recipe = tmp_path / "pictures.toml"
    recipe.write_text('name = "set"\n[folder]\npath = "pictures"\n')
    verbs = WITHOUT_PREFECT + "from urushi.cli import main; main()"
    workspace = str(tmp_path / "workspace")
    for verb in ("download", "caption"):
        ended = python(verbs, verb, str(recipe), "--workspace", workspace)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith(f"{verb}: done")
        again = python(verbs, verb, str(recipe), "--workspace", workspace)
        assert again.stdout.startswith(f"{verb}: already done")
    ended = python(verbs, "run", str(recipe), "--workspace", workspace)
    assert ended.returncode == 2
    assert "Prefect, which is not installed" in ended.stderr and "Traceback" not in ended.stderr


def test_every_stage_has_its_entry() -> None:
    for stage in STAGES:
        assert find_spec(stage.entry.partition(":")[0]) is not None


def packages() -> set[str]:
    """Every importable folder of the repository, dotted."""
    rooms = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    return {
        ".".join(p.parent.relative_to(ROOT).parts)
        for room in rooms
        for p in (ROOT / room).rglob("__init__.py")
    }


def test_every_package_is_shipped_and_has_a_floor() -> None:
    """import-linter is exhaustive below pipeline; at the top this is."""
    assert set(PROJECT["setuptools"]["packages"]) == packages()
    top = {name for name in packages() if "." not in name}
    assert set(PROJECT["importlinter"]["root_packages"]) == top
    assert set(PROJECT["mypy"]["packages"]) == top
    rooms, stages = PROJECT["importlinter"]["contracts"][:2]
    assert {n.strip() for layer in rooms["layers"] for n in layer.split("|")} == top
    assert stages["containers"] == ["pipeline"] and stages["exhaustive"] is True


def test_datasets_hold_no_python() -> None:
    """A package of that name would hide Hugging Face's, which accelerate imports."""
    assert list((ROOT / "datasets").rglob("*.py")) == []


def test_tests_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []
