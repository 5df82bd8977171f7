"""Bad input: a sentence, an exit code, and nothing left behind."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge import Addend, MergeError, concat, merge
from merge.container import read_header


def header(fields, payload=b"", length=None):
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


def one(shape=(2,), offsets=(0, 4), dtype="F16"):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


BROKEN = {
    "empty": (b"", "is empty"),
    "a text file": (b"<!DOCTYPE html><html>not found</html>", "text file"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    "a pickle": (b"PK\x03\x04" + bytes(100), "pickled"),
    "too short": (b"\x02\0\0\0\0\0\0\0{", "too few"),
    "header beyond the file": (header(one(), length=10**6), "1,000,000 bytes"),
    "header over the limit": (header(b"{}", bytes(200), length=2**40), "at most 100,000,000"),
    "header not JSON": (header(b"{'a': 1}"), "not JSON"),
    "header not UTF-8": (header(b'{"\xff": 1}'), "not JSON"),
    "header a list": (header(b"[1, 2, 3]"), "not a JSON object"),
    "header a bomb": (header(b"[" * 200_000), "not JSON"),
    "truncated": (header(one(), b"\0\0"), "need 4 bytes and the file has 2"),
    "bytes left over": (header(one(), bytes(9)), "need 4 bytes and the file has 9"),
    "a hole": (header(one(offsets=(4, 8)), bytes(8)), "hole"),
    "an overlap": (
        header({**one(), "b": one(offsets=(2, 6))["a"]}, bytes(6)),
        "overlaps",
    ),
    "negative offsets": (header(one(offsets=(-4, 0)), bytes(4)), "offsets"),
    "offsets not numbers": (header(one(offsets=("0", "4")), bytes(4)), "offsets"),
    "wrong size for the shape": (header(one(shape=(3,)), bytes(4)), "but 4 bytes"),
    "unknown dtype": (header(one(dtype="F17"), bytes(4)), "'F17'"),
    "no dtype": (header({"a": {"shape": [2], "data_offsets": [0, 4]}}, bytes(4)), "lacks a dtype"),
    "a tensor that is a number": (header({"a": 7}), "lacks a dtype"),
    "metadata not texts": (header({"__metadata__": {"a": 1}}), "__metadata__"),
    "a key twice": (
        header(b'{"a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]},"a":{}}'),
        "key a twice",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("role", ["base", "lora"])
def test_broken_files(base, lora, tmp_path, name, role):
    content, words = BROKEN[name]
    if (name, role) == ("a pickle", "base"):
        words = "or it is damaged; nothing in it was run"  # An honest one is read.
    broken, out = tmp_path / "broken.safetensors", tmp_path / "out.safetensors"
    broken.write_bytes(content)
    pair = (broken, lora(base)) if role == "base" else (base.file, broken)
    with pytest.raises(MergeError) as caught:
        merge(pair[0], [Addend(pair[1], 1.0)], out)
    assert words in str(caught.value) and str(broken) in str(caught.value)
    assert caught.value.exit_code == 2
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_an_honest_header_is_read_as_safetensors_reads_it(base):
    found = read_header(base.file)
    tensors = load_file(base.file)
    assert {k: e.shape for k, e in found.entries.items()} == {
        k: (*v.shape,) for k, v in tensors.items()
    }
    assert found.metadata["note"] == "kept"


def changed(base, lora, **tensors):
    """The usual LoRA with some keys replaced; None removes a key."""
    path = lora(base)
    content = load_file(path)
    for key, value in tensors.items():
        content.pop(key, None)
        if value is not None:
            content[key] = value
    save_file(content, path)
    return path


NAME = "lora_unet_mid_block_resnets_0_conv1"
ODD_LORAS = {
    "Tucker": ({f"{NAME}.lora_mid.weight": torch.ones(1)}, "Tucker"),
    "DoRA": ({f"{NAME}.dora_scale": torch.ones(1)}, "DoRA"),
    "LoHa": ({f"{NAME}.hada_w1_a": torch.ones(1)}, "LoHa"),
    "LoKr": ({f"{NAME}.lokr_w1": torch.ones(1)}, "LoKr"),
    "OFT": ({f"{NAME}.oft_blocks": torch.ones(1)}, "OFT"),
    "diff": ({f"{NAME}.diff": torch.ones(1)}, "full differences"),
    "diff_b": ({f"{NAME}.diff_b": torch.ones(1)}, "full differences"),
    "PEFT": ({"unet.mid_block.resnets.0.conv1.lora_A.weight": torch.ones(1)}, "PEFT"),
    "stranger": ({f"{NAME}.what": torch.ones(1)}, f"{NAME}.what"),
    "no up": ({f"{NAME}.lora_up.weight": None}, NAME),
    "no down": ({f"{NAME}.lora_down.weight": None}, NAME),
    "alpha alone": ({"lora_unet_x.alpha": torch.ones(())}, "lora_unet_x"),
    "no such layer": (
        {
            "lora_unet_mid_block_resnets_9_conv1.lora_up.weight": torch.ones(2, 1),
            "lora_unet_mid_block_resnets_9_conv1.lora_down.weight": torch.ones(1, 2),
        },
        "have no weight in .*lora_unet_mid_block_resnets_9_conv1",
    ),
    "an embedding": (
        {
            "lora_te_text_model_embeddings_token_embedding.lora_up.weight": torch.ones(18, 1),
            "lora_te_text_model_embeddings_token_embedding.lora_down.weight": torch.ones(1, 16),
        },
        "have no weight in",
    ),
    "SDXL": (
        {
            "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(2, 1),
            "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(1, 2),
        },
        "SDXL LoRA",
    ),
    "one layer twice": (
        {
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(24, 1),
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(1, 16),
        },
        "one layer twice",
    ),
    "alpha of two": ({f"{NAME}.alpha": torch.ones(2)}, "not one number"),
    "alpha not finite": ({f"{NAME}.alpha": torch.tensor(float("inf"))}, "NaN or infinity"),
    "NaN": ({f"{NAME}.lora_up.weight": torch.full((32, 3, 1, 1), float("nan"))}, "NaN or infinity"),
    "integers": ({f"{NAME}.lora_up.weight": torch.ones(32, 3, 1, 1, dtype=torch.int32)}, "I32"),
    "ranks differ": ({f"{NAME}.lora_up.weight": torch.ones(32, 4, 1, 1)}, "do not fit each other"),
    "a wide up": ({f"{NAME}.lora_up.weight": torch.ones(32, 3, 3, 3)}, "do not fit each other"),
    "too many outputs": ({f"{NAME}.lora_up.weight": torch.ones(33, 3, 1, 1)}, "33 × 32 × 3 × 3"),
    "1x1 on 3x3": ({f"{NAME}.lora_down.weight": torch.ones(3, 32, 1, 1)}, "32 × 32 × 1 × 1"),
    "one output": ({f"{NAME}.lora_up.weight": torch.ones(1, 3, 1, 1)}, "1 × 32 × 3 × 3"),
}


@pytest.mark.parametrize("name", ODD_LORAS)
def test_odd_loras(base, lora, tmp_path, name):
    tensors, words = ODD_LORAS[name]
    path, out = changed(base, lora, **tensors), tmp_path / "out.safetensors"
    with pytest.raises(MergeError, match=words) as caught:
        merge(base.file, [Addend(path, 0.0 if name == "NaN" else 1.0)], out)
    assert caught.value.exit_code == 2 and str(path) in str(caught.value)
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_unmatched_modules_can_be_allowed_and_are_reported(base, lora, tmp_path):
    name = "lora_unet_mid_block_resnets_9_conv1"
    path = changed(base, lora, **ODD_LORAS["no such layer"][0])
    out, plain = tmp_path / "out.safetensors", tmp_path / "plain.safetensors"
    report = merge(base.file, [Addend(path, 1.0)], out, allow_unmatched=True)
    assert report.unmatched == (f"{path}: {name}",) and report.warnings
    merge(base.file, [Addend(lora(base), 1.0)], plain)
    merged = load_file(out)
    assert all(torch.equal(value, merged[key]) for key, value in load_file(plain).items())


def test_a_lora_of_another_model(base, tiny, lora, tmp_path):
    path = lora(tiny("sd15"), "other")
    with pytest.raises(MergeError, match="made for another model"):
        merge(base.file, [Addend(path, 1.0)], tmp_path / "out.safetensors")


def rewritten(base, path, change):
    tensors = load_file(base.file)
    change(tensors)
    save_file(tensors, path)
    return path


WEIGHT = "model.diffusion_model.middle_block.0.in_layers.2.weight"
VAE = "first_stage_model.decoder.conv_out.weight"


def _nan(tensors):
    tensors[WEIGHT][0, 0, 0, 0] = float("nan")


def _infinite_vae(tensors):
    tensors[VAE][0, 0, 0, 0] = float("inf")


def _sdxl(tensors):
    tensors["conditioner.embedders.0.transformer.x"] = torch.ones(1)


def _no_unet(tensors):
    for key in [k for k in tensors if k.startswith("model.")]:
        del tensors[key]


def _gap(tensors):
    for key in [k for k in tensors if ".input_blocks.2." in k]:
        del tensors[key]


def _fp8(tensors):
    tensors[WEIGHT] = tensors[WEIGHT].to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_nan, WEIGHT),
        (_infinite_vae, VAE),
        (_sdxl, "SDXL"),
        (_no_unet, "no UNet"),
        (_gap, "input_blocks.2"),
        (_fp8, "F8_E4M3"),
    ],
)
def test_odd_bases(base, lora, tmp_path, change, words):
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    rewritten(base, source, change)
    with pytest.raises(MergeError) as caught:
        merge(source, [Addend(lora(base), 1.0)], out)
    assert words in str(caught.value) and caught.value.exit_code == 2
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_buffers_that_may_be_infinite_are_not_weights(base, lora, tmp_path):
    """Zero-terminal-SNR schedules stored in a checkpoint hold infinities by right."""
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    rewritten(
        base, source, lambda t: t.update(sqrt_recip_alphas_cumprod=torch.full((2,), torch.inf))
    )
    merge(source, [Addend(lora(base), 1.0)], out)
    assert torch.isinf(load_file(out)["sqrt_recip_alphas_cumprod"]).all()


def test_overflow_of_the_output(base, lora, tmp_path):
    out = tmp_path / "out.safetensors"
    with pytest.raises(MergeError, match="Lower the strength"):
        merge(base.file, [Addend(lora(base), 1e8)], out)
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_a_lora_in_the_place_of_a_base_and_the_other_way(base, lora, tmp_path):
    path = lora(base)
    with pytest.raises(MergeError, match="is a LoRA"):
        merge(path, [Addend(path, 1.0)], tmp_path / "out.safetensors")
    with pytest.raises(MergeError, match="checkpoint, given in the place of a LoRA"):
        merge(base.file, [Addend(base.file, 1.0)], tmp_path / "out.safetensors")


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_strength_must_be_a_number(base, lora, tmp_path, strength):
    for act in (lambda a, o: merge(base.file, a, o), concat):
        with pytest.raises(MergeError, match="not a number"):
            act([Addend(lora(base), strength)], tmp_path / "out.safetensors")


def test_places(base, lora, tmp_path):
    path = lora(base)
    addends = [Addend(path, 1.0)]
    cases = [
        (base.file, path, "overwrite"),
        (base.file, base.file, "overwrite"),
        (base.folder, base.folder / "new", "one in the other"),
        (base.file, tmp_path / "folder", "is a folder"),
        (base.folder, base.file, "is a file"),
        (base.file, path / "below", "one in the other"),
        (tmp_path / "none.safetensors", tmp_path / "o.safetensors", "no base checkpoint"),
        (tmp_path, tmp_path.parent / "o", "model_index.json"),
    ]
    (tmp_path / "folder").mkdir()
    before = base.file.read_bytes(), path.read_bytes()
    for source, out, words in cases:
        with pytest.raises(MergeError, match=words) as caught:
            merge(source, addends, out)
        assert caught.value.exit_code == 2
    assert (base.file.read_bytes(), path.read_bytes()) == before
    with pytest.raises(MergeError, match="one of float16"):
        merge(base.file, addends, tmp_path / "o.safetensors", dtype="int8")
    with pytest.raises(MergeError, match="cannot be read"):
        merge(base.file, [Addend(tmp_path / "none", 1.0)], tmp_path / "o.safetensors")
    (tmp_path / "a_file").touch()
    with pytest.raises(MergeError, match="cannot be written") as caught:
        merge(base.file, addends, tmp_path / "a_file" / "o.safetensors")
    assert caught.value.exit_code == 2


def test_folders_that_cannot_be_read(base, lora, tmp_path):
    folder = tmp_path / "pipeline"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    with pytest.raises(MergeError, match="save_pretrained"):
        merge(folder, [Addend(lora(base), 1.0)], tmp_path / "out")


@pytest.mark.parametrize("kind", ["file", "folder", "concat"])
def test_full_disk_keeps_the_old_output(base, lora, tmp_path, monkeypatch, kind):
    path, out = lora(base), tmp_path / "out"
    source = base.folder if kind == "folder" else base.file

    def act(strength):
        if kind == "concat":
            concat([Addend(path, strength)], out)
        else:
            merge(source, [Addend(path, strength)], out)

    def content():
        files = sorted(out.rglob("*")) if out.is_dir() else [out]
        return [p.read_bytes() for p in files if p.is_file()]

    act(1.0)
    before = content()
    synced = os.fsync

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    # Delayed allocation reports a full disk here at the latest.
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MergeError, match="No room left") as caught:
        act(0.5)
    assert caught.value.exit_code == 3
    monkeypatch.setattr(os, "fsync", synced)

    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage)
    with pytest.raises(MergeError, match="the disk has 10 left") as caught:
        act(0.5)
    assert caught.value.exit_code == 3
    assert content() == before and not list(tmp_path.glob(".*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_disk_that_fills_up_meanwhile(base, lora, tmp_path, small_disk, kind):
    """Room enough when it was looked at; another program took it."""
    source, out = (base.folder if kind == "folder" else base.file), small_disk / "out"
    path = lora(base)
    merge(source, [Addend(path, 1.0)], out)
    files = [out] if kind == "file" else sorted(p for p in out.rglob("*") if p.is_file())
    before = [p.read_bytes() for p in files]

    def fill(done, total):
        if done == 1:
            with suppress(OSError), open(small_disk / "another", "wb", buffering=0) as other:
                while other.write(bytes(4096)):
                    pass

    with pytest.raises(MergeError, match="No room left") as caught:
        merge(source, [Addend(path, 0.5)], out, on_tensor=fill)
    assert caught.value.exit_code == 3
    assert [p.read_bytes() for p in files] == before and not list(small_disk.glob(".*"))
    with pytest.raises(MergeError, match="Nothing was written") as caught:
        merge(source, [Addend(path, 0.5)], out)
    assert caught.value.exit_code == 3 and not list(small_disk.glob(".*"))
    (small_disk / "another").unlink()
    merge(source, [Addend(path, 0.5)], out)
    merge(source, [Addend(path, 0.5)], tmp_path / "apart")
    for file in files:
        same = tmp_path / "apart" / file.relative_to(out)
        assert file.read_bytes() == same.read_bytes()


def test_no_right_to_write(base, lora, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    path = lora(base)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(MergeError, match="cannot be written: Permission denied") as caught:
        merge(base.file, [Addend(path, 1.0)], tmp_path / "out.safetensors")
    assert caught.value.exit_code == 2


def test_interruption_leaves_nothing(base, lora, tmp_path):
    def stop(done, total):
        if done == total // 2:
            raise KeyboardInterrupt

    for source, out in ((base.file, "out.safetensors"), (base.folder, "out")):
        with pytest.raises(KeyboardInterrupt):
            merge(source, [Addend(lora(base), 1.0)], tmp_path / out, on_tensor=stop)
        assert not (tmp_path / out).exists() and not list(tmp_path.glob(".*"))


KILLED = """
import sys, time
from pathlib import Path
from merge import Addend, merge
base, lora, out = map(Path, sys.argv[1:])
def slow(done, total):
    print(done, flush=True)
    time.sleep(0.01)
merge(base, [Addend(lora, 0.7)], out, on_tensor=slow)
"""


def test_kill_leaves_no_output_and_the_next_run_makes_it(base, lora, tmp_path):
    path, out, plain = lora(base), tmp_path / "out.safetensors", tmp_path / "plain.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, base.file, path, out],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    for _ in range(20):
        assert process.stdout.readline()
    assert list(tmp_path.glob(".out.safetensors.*.part")) and not out.exists()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    time.sleep(0.01)
    assert not out.exists()
    merge(base.file, [Addend(path, 0.7)], out)
    merge(base.file, [Addend(path, 0.7)], plain)
    assert out.read_bytes() == plain.read_bytes()
