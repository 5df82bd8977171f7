"""The README is true: its verbs run, its tree is the tree, and every recipe loads."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline.recipe import BuildRecipe, DatasetRecipe, load_any

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
VERBS = re.findall(r"^\| `urushi ([a-z]+)", README, re.MULTILINE)


def urushi(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("urushi")), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_table_of_verbs_is_the_programs() -> None:
    listed = re.findall(r"^  ([a-z]+)  ", urushi("--help").stdout, re.MULTILINE)
    assert sorted(VERBS) == sorted(listed)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    ended = urushi(verb, "--help")
    assert ended.returncode == 0
    assert f"Usage: urushi {verb} " in ended.stdout


def test_the_tree_is_the_tree() -> None:
    listed = re.findall(r"^    ([a-z]+)/ ", README.split("## The code")[1], re.MULTILINE)
    folders = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and any(path.rglob("*.[pt][yo]*"))
    }
    generated = {"build", "demo-workspace", "workspace"}
    assert set(listed) == {f for f in folders - generated if not f.endswith(".egg-info")}


@pytest.mark.parametrize("path", sorted((ROOT / "datasets").rglob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    recipe = load_any(path)
    if isinstance(recipe, BuildRecipe):
        assert isinstance(load_any(recipe.dataset.recipe), DatasetRecipe)
        assert recipe.law()


def test_the_readmes_recipes_load(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 6
    kinds = set()
    for number, block in enumerate(blocks):
        sections = list(tomllib.loads(block))
        if sections == ["cache", "train"]:
            base, dataset = '[base]\ncheckpoint = "x.safetensors"', '[dataset]\nrecipe = "set.toml"'
            block = f'name = "coat"\n{base}\n{dataset}\n{block}'
        if sections in (["caption"], ["tagger"], ["masks"]):
            block = f'name = "set"\n[folder]\npath = "pictures"\n{block}'
        (tmp_path / f"{number}.toml").write_text(block)
        kinds.add(type(load_any(tmp_path / f"{number}.toml")))
    assert kinds == {BuildRecipe, DatasetRecipe}
