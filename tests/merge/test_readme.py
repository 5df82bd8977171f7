"""merge/README.md is true: its commands and its Python blocks run, and its table is the folder."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "merge" / "README.md"
COMMANDS = re.findall(r"^urushi .+$", README.read_text().split("```sh")[1], re.MULTILINE)


def test_there_are_ten_commands():
    assert len(COMMANDS) == 10


@pytest.fixture(scope="session")
def bench(tiny, tmp_path_factory):
    """A folder with what the commands name; they run in it in their order."""
    place = tmp_path_factory.mktemp("bench")
    base = tiny("sd15")
    shutil.copy(base.file, place / "base.safetensors")
    shutil.copytree(base.folder, place / "pipeline")
    return place


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_commands_run(bench, tiny, lora, number):
    base = tiny("sd15")
    for name, seed in (("style", 0), ("other", 1)):
        if not (bench / f"{name}.safetensors").exists():
            shutil.copy(lora(base, name, seed=seed, rank=4), bench / f"{name}.safetensors")
    words = shlex.split(COMMANDS[number])
    words[0] = str(Path(sys.executable).with_name("urushi"))
    ended = subprocess.run(words, cwd=bench, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    if "--out" in words:
        assert (bench / words[words.index("--out") + 1]).exists()


def test_blocks_run(base, lora, tmp_path, capsys):
    names = {
        "base": base.file,
        "lora": lora(base, "lora"),
        "second": lora(base, "second", seed=1),
        "out": tmp_path / "out.safetensors",
        "lora_out": tmp_path / "sum.safetensors",
        "checkpoint": tmp_path / "checkpoint.safetensors",
        "bar": lambda done, total: None,
        "unet": base.unet,
        "vae": base.vae,
        "text_encoder": base.text_encoder,
    }
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(block, names)
    printed = capsys.readouterr().out
    assert "weights moved by" in printed and printed.rstrip().endswith("2")
    assert all(names[name].exists() for name in ("out", "lora_out", "checkpoint"))


def test_the_table_names_every_file():
    table = README.read_text().split("## Where things are")[1]
    files = {path.name for path in README.parent.glob("*.py")}
    shown = set(re.findall(r"`(\w+\.py)`", table))
    assert shown <= files and files - shown == {"__init__.py", "errors.py", "records.py"}
