"""Every Python block of merge/README.md runs, in order."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "merge" / "README.md"


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
