"""What the written file is and says: layout, markers, metadata, lineage, progress, memory."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from blake3 import blake3
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from merge import Addend, concat, merge
from merge.container import read_header


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_layout_order_and_markers_are_the_bases(base, lora, tmp_path):
    out = tmp_path / "out.safetensors"
    merge(base.file, [Addend(lora(base), 0.7)], out)
    before, after = read_header(base.file), read_header(out)
    assert list(before.entries.items()) == list(after.entries.items())
    tensors = load_file(out)
    assert tensors["v_pred"].numel() == tensors["ztsnr"].numel() == 0
    assert torch.equal(tensors["stranger.in_the_file"], torch.arange(5))
    assert (8 + after.start) % 8 == 0


def test_other_dtypes_are_aligned(base, lora, tmp_path):
    source, out = tmp_path / "odd.safetensors", tmp_path / "out.safetensors"
    tensors = load_file(base.file)
    tensors["odd.bytes"] = torch.zeros(3, dtype=torch.uint8)
    tensors["double"] = torch.ones(2, dtype=torch.float64)
    save_file(tensors, source)
    merge(source, [Addend(lora(base), 1.0)], out, dtype="float32")
    after = read_header(out)
    assert list(after.entries) == list(read_header(source).entries)
    for name, tensor in load_file(out).items():
        assert (after.start + after.entries[name].begin) % tensor.element_size() == 0, name


def test_lineage(base, lora, tmp_path):
    path, out, second = lora(base), tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    report = merge(base.file, [Addend(path, 0.7)], out, metadata={"mine": "yes"})
    written = metadata(out)
    hashes = [blake3(p.read_bytes()).hexdigest() for p in (base.file, path, out)]
    assert written["note"] == "kept" and written["mine"] == "yes"
    assert written["modelspec.title"] == "a base"
    assert written["modelspec.sai_model_spec"] == "1.0.0"
    assert written["modelspec.architecture"] == "stable-diffusion-v1"
    assert written["modelspec.prediction_type"] == "v"
    lineage = json.loads(written["urushi.lineage"])
    assert lineage["base"] == {"blake3": hashes[0]}
    assert lineage["loras"] == [{"blake3": hashes[1], "strength": 0.7}]
    assert (report.base, *report.addends) == (*hashes[:2],)
    # A merge of a merge keeps the whole story, and takes remembered hashes as they are.
    merge(out, [Addend(path, 0.5)], second, identities={path: "remembered"})
    again = json.loads(metadata(second)["urushi.lineage"])
    assert again["base"] == {"blake3": hashes[2], "lineage": lineage}
    assert again["loras"] == [{"blake3": "remembered", "strength": 0.5}]
    # Nothing of where it was made, so that a rebuild elsewhere has the same bytes.
    assert not any(str(tmp_path) in value for value in written.values())


def test_prediction_type_is_not_claimed_without_a_marker(base, lora, tmp_path):
    source, out = tmp_path / "plain.safetensors", tmp_path / "out.safetensors"
    tensors = load_file(base.file)
    del tensors["v_pred"], tensors["ztsnr"]
    save_file(tensors, source, {"modelspec.hash_sha256": "0xold", "modelspec.date": "2020"})
    merge(source, [Addend(lora(base), 1.0)], out)
    written = metadata(out)
    assert "modelspec.prediction_type" not in written
    assert "modelspec.hash_sha256" not in written and "modelspec.date" not in written


def test_concat_keeps_what_all_agree_on(base, lora, tmp_path):
    paths = [lora(base, name) for name in ("a", "b")]
    for number, path in enumerate(paths):
        save_file(load_file(path), path, {"ss_base": "same", "ss_epoch": str(number)})
    concat([Addend(p, 1.0) for p in paths], tmp_path / "one.safetensors")
    written = metadata(tmp_path / "one.safetensors")
    assert written["ss_base"] == "same" and "ss_epoch" not in written
    assert len(json.loads(written["urushi.lineage"])["loras"]) == 2


def test_no_lora_at_all_copies_the_base(base, tmp_path):
    out = tmp_path / "out.safetensors"
    report = merge(base.file, [], out)
    assert report.matched == () and report.cast_loss == 0.0
    assert (
        out.read_bytes()[read_header(out).start :]
        == (base.file.read_bytes()[read_header(base.file).start :])
    )
    assert report.size == out.stat().st_size


def test_progress_counts_every_tensor(base, lora, tmp_path):
    calls = []
    report = merge(
        base.file,
        [Addend(lora(base), 1.0)],
        tmp_path / "out.safetensors",
        on_tensor=lambda done, total: calls.append((done, total)),
    )
    count = len(load_file(base.file))
    assert calls == [(i + 1, count) for i in range(count)] and report.tensors == count


def test_importing_the_error_needs_no_torch():
    code = "import sys, merge; merge.MergeError; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


MEASURE = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from merge import Addend, merge
base, lora, out = map(Path, sys.argv[1:])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
import merge.run, merge.arithmetic
torch.ones(8, 8) @ torch.ones(8, 8)
before = peak()
merge.merge(base, [Addend(lora, 0.5)], out)
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_file(base, lora, tmp_path):
    """A tensor of 61 MB on top of the rest takes blocks, not the whole."""
    tensors = load_file(base.file)
    key = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1"
    tensors[f"{key}.weight"] = torch.zeros(60_000, 512, dtype=torch.float16)
    source, path = tmp_path / "source.safetensors", tmp_path / "big.safetensors"
    save_file(tensors, source)
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    factors = {
        f"{name}.lora_up.weight": torch.ones(60_000, 1),
        f"{name}.lora_down.weight": torch.ones(1, 512),
    }
    save_file(factors, path)
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, source, path, tmp_path / "out.safetensors"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    # The file's pages, read through a map for its hash, count as resident though they are cache.
    assert int(result.stdout) < 62 + 50
    assert load_file(tmp_path / "out.safetensors")[f"{key}.weight"][-1, -1] == 0.5
