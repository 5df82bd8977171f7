"""`urushi caption` and its looks, as a person types them, on a folder of pictures."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

RECIPE = """
name = "set"
[folder]
path = "pictures"
[[caption.rule]]
rename = {{ aiming_at_viewer = "{aav}" }}
reason = "its words are in other tags too"
"""


@pytest.fixture
def recipe(urushi: Any, tmp_path: Path) -> Path:
    """A dataset of two pictures, downloaded and captioned."""
    (tmp_path / "pictures").mkdir()
    for number, tags in enumerate(("aiming_at_viewer, gun", "gun, smile")):
        Image.new("RGB", (64, 48), (number * 90, 0, 0)).save(tmp_path / f"pictures/{number}.png")
        (tmp_path / f"pictures/{number}.txt").write_text(tags)
    path = tmp_path / "set.toml"
    path.write_text(RECIPE.format(aav="aav"))
    for verb in ("download", "caption"):
        ended = urushi(verb, path)
        assert ended.returncode == 0, ended.stderr
    return path


def test_looks_write_no_caption(urushi: Any, recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.glob("workspace/datasets/set/captions/*/*"))
    recipe.write_text(RECIPE.format(aav="aims"))
    ended = urushi("caption", recipe, "--diff")
    assert ended.returncode == 0, ended.stderr
    assert "set: 1 of 2 captions change" in ended.stdout
    assert "now said: aims 1" in ended.stdout and "no longer said: aav 1" in ended.stdout
    assert "- aav, gun\n" in ended.stdout and "+ aims, gun\n" in ended.stdout
    stats = urushi("caption", recipe, "--stats").stdout
    assert "set: 2 captions of 2 to 2 tags, median 2; 3 different tags" in stats
    assert "said most: gun 2" in stats
    (one,) = {line.split()[0] for line in ended.stdout.splitlines() if len(line.strip()) == 32}
    explained = urushi("caption", recipe, "--explain", one[:6]).stdout
    assert "aims    its words are in other tags too" in explained
    assert "caption: aims, gun" in explained
    assert sorted(tmp_path.glob("workspace/datasets/set/captions/*/*")) == before
    out = tmp_path / "pairs"
    assert urushi("caption", recipe, "--export", "kohya", out).returncode == 0
    assert len(list(out.glob("*.png"))) == len(list(out.glob("*.txt"))) == 2
    assert (out / f"{one}.txt").read_text() == "aims, gun\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--diff", "--stats"), "Give one of --diff, --explain, --stats and --export."),
        (("--explain", "ab"), "too short"),
        (("--explain", "zzzz"), "No picture of"),
        (("--export", "onetrainer", "out"), "not a form that is known"),
    ],
)
def test_what_cannot_be_looked_at(
    urushi: Any, recipe: Path, words: tuple[str, ...], said: str
) -> None:
    ended = urushi("caption", recipe, *words)
    assert ended.returncode == 2 and said in ended.stderr and "Traceback" not in ended.stderr
