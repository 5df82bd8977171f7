"""How bytes get from the base to the output: one pass, the kernel's copies, never half a file."""

import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from merge import Addend, MergeError, beside, merge
from merge import identity as identity_module
from merge.container import read_header

CHILD = """
import sys, time
from pathlib import Path
import merge.run, merge.stream
from merge import Addend
slowly = float(sys.argv[4])
write = merge.stream.Work._unchanged
def waiting(self, *rest):
    time.sleep(slowly)
    yield from write(self, *rest)
merge.stream.Work._unchanged = waiting
print("ready", flush=True)
merge.run.merge(Path(sys.argv[1]), [Addend(Path(sys.argv[2]), 0.7)], Path(sys.argv[3]))
"""


def some_layers(base, lora, tmp_path):
    """A LoRA that leaves most tensors as they are."""
    return lora(base, "few", every=7)


def test_untouched_tensors_are_copied_by_the_kernel(base, lora, tmp_path, monkeypatch):
    path, copies = some_layers(base, lora, tmp_path), []
    real = os.copy_file_range

    def counted(source, target, count, offset):
        # The kernel may copy less than it was asked for.
        done = real(source, target, min(count, 5000), offset)
        copies.append(done)
        return done

    monkeypatch.setattr(os, "copy_file_range", counted)
    report = merge(base.file, [Addend(path, 0.7)], tmp_path / "kernel.safetensors")
    header = read_header(base.file)
    changed = sum(header.entries[row.key].size for row in report.matched)
    assert sum(copies) == sum(entry.size for entry in header.entries.values()) - changed > 0
    # Adjacent ones go together: a run of many tensors is not one call for each.
    whole = [done for done in copies if done == 5000]
    assert len(copies) - len(whole) <= len(report.matched) + 1

    def refused(*_):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "copy_file_range", refused)
    merge(base.file, [Addend(path, 0.7)], tmp_path / "hand.safetensors")
    first, second = (tmp_path / f"{n}.safetensors" for n in ("kernel", "hand"))
    assert first.read_bytes() == second.read_bytes()


def test_blocks_of_the_file_can_be_shared(base, lora, tmp_path):
    """The buffer starts at the same place of a page as the base's, whatever the header says."""
    for number, note in enumerate(("", "x" * 3000, "y" * 9000)):
        out = tmp_path / f"{number}.safetensors"
        merge(
            base.file, [Addend(some_layers(base, lora, tmp_path), 1.0)], out, metadata={"n": note}
        )
        assert read_header(out).start % 4096 == read_header(base.file).start % 4096
        load_file(out)


def test_the_hash_of_the_base_costs_no_second_pass(base, lora, tmp_path, monkeypatch):
    path, read = lora(base), []
    real = identity_module.Hasher._read

    def counted(self, end):
        before = self._done
        real(self, end)
        if self._path == base.file:
            read.append(self._done - before)

    monkeypatch.setattr(identity_module.Hasher, "_read", counted)
    report = merge(base.file, [Addend(path, 0.7)], tmp_path / "out.safetensors")
    assert report.base == blake3(base.file.read_bytes()).hexdigest()
    # The header alone was read for the hash; the tensors went by.
    assert sum(read) == read_header(base.file).start


def test_a_base_out_of_order_is_hashed_all_the_same(base, lora, tmp_path):
    """Tensors in the file's header in another order than their bytes."""
    tensors = load_file(base.file)
    names = sorted(tensors)
    random.Random(1).shuffle(names)
    shuffled = tmp_path / "shuffled.safetensors"
    save_file({name: tensors[name] for name in names}, shuffled)
    report = merge(shuffled, [Addend(lora(base), 0.7)], tmp_path / "out.safetensors")
    assert report.base == blake3(shuffled.read_bytes()).hexdigest()
    assert list(read_header(tmp_path / "out.safetensors").entries) == list(
        read_header(shuffled).entries
    )


def test_nan_in_an_untouched_tensor_is_found(base, lora, tmp_path):
    tensors = load_file(base.file)
    key = "first_stage_model.decoder.conv_out.weight"
    tensors[key] = torch.full_like(tensors[key], float("nan"))
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(MergeError, match=r"decoder\.conv_out\.weight .* holds NaN"):
        merge(tmp_path / "nan.safetensors", [Addend(lora(base), 1.0)], tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*"))


def child(base, lora: Path, out: Path, slowly: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, base.file, lora, out, str(slowly)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_killed_at_any_moment_there_is_all_or_nothing(base, lora, tmp_path):
    path, out = some_layers(base, lora, tmp_path), tmp_path / "out.safetensors"
    merge(base.file, [Addend(path, 0.7)], tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    draw, kills = random.Random(3), 0
    for _ in range(5):
        process = child(base, path, out, 0.004)
        time.sleep(draw.uniform(0.05, 0.9))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        kills += process.returncode == -signal.SIGKILL
        assert not out.exists() or out.read_bytes() == whole
    assert kills >= 3
    left = list(tmp_path.glob(".out*"))
    merge(base.file, [Addend(path, 0.7)], out)
    assert out.read_bytes() == whole and not list(tmp_path.glob(".out*"))
    assert left  # What was swept away had been there.


def test_two_processes_on_one_output(base, lora, tmp_path):
    """The last rename wins, and neither is torn."""
    one, two = lora(base, "one", every=7), lora(base, "two", every=5, seed=1)
    out = tmp_path / "out.safetensors"
    processes = [child(base, path, out, 0.002) for path in (one, two)]
    for process in processes:
        assert process.wait(timeout=60) == 0
        process.stdout.close()
    expected = []
    for number, path in enumerate((one, two)):
        merge(base.file, [Addend(path, 0.7)], tmp_path / f"{number}.safetensors")
        expected.append((tmp_path / f"{number}.safetensors").read_bytes())
    assert out.read_bytes() in expected and expected[0] != expected[1]
    assert not list(tmp_path.glob(".*"))


def test_only_what_dead_writers_left_is_swept(base, lora, tmp_path):
    """Whoever holds the lock lives, whatever its number; a number says nothing in a container."""
    stale, folder = tmp_path / ".out.safetensors.0.1.part", tmp_path / ".out.safetensors.1.7.part"
    alive, other = tmp_path / ".out.safetensors.0.99.part", tmp_path / ".out.safetensors.b.0.1.part"
    folder.mkdir()
    for path in (stale, alive, other, folder / "inside"):
        path.write_bytes(b"part")
    with open(alive, "rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        merge(base.file, [Addend(lora(base), 1.0)], tmp_path / "out.safetensors")
        assert not stale.exists() and not folder.exists() and alive.exists() and other.exists()
    merge(base.file, [Addend(lora(base), 1.0)], tmp_path / "out.safetensors")
    assert not alive.exists() and other.exists()


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_by_an_exchange_of_names(base, lora, tmp_path, monkeypatch, exchange):
    """At no moment is there no output; where the system cannot, two renames do it."""
    out, path = tmp_path / "out", lora(base)
    merge(base.folder, [Addend(path, 0.7)], out)
    (out / "of the old one").touch()
    renames, real = [], os.rename
    if not exchange:
        monkeypatch.setattr(beside, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", lambda *names: (renames.append(names), real(*names)))
    merge(base.folder, [Addend(path, 0.5)], out)
    monkeypatch.undo()
    assert len(renames) == (0 if exchange else 2)
    assert not (out / "of the old one").exists() and not list(tmp_path.glob(".*"))
    merge(base.folder, [Addend(path, 0.5)], tmp_path / "apart")
    assert weights(out) == weights(tmp_path / "apart") != weights(base.folder)


def weights(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def test_force_lets_an_output_take_the_place_of_its_input(base, lora, tmp_path):
    path, copy = lora(base), tmp_path / "copy.safetensors"
    copy.write_bytes(base.file.read_bytes())
    with pytest.raises(MergeError, match="would overwrite its input"):
        merge(copy, [Addend(path, 0.7)], copy)
    assert copy.read_bytes() == base.file.read_bytes()
    merge(base.file, [Addend(path, 0.7)], tmp_path / "apart.safetensors")
    merge(copy, [Addend(path, 0.7)], copy, force=True)
    assert copy.read_bytes() == (tmp_path / "apart.safetensors").read_bytes()


def test_stable_rank_is_told_where_it_is_asked_for(base, lora, tmp_path):
    path = lora(base, rank=3)
    report = merge(base.file, [Addend(path, 0.7)], tmp_path / "a.safetensors", stable_rank=True)
    tensors = load_file(path)
    for row in report.matched:
        up = tensors[f"{row.module}.lora_up.weight"].flatten(1).double()
        down = tensors[f"{row.module}.lora_down.weight"].flatten(1).double()
        values = torch.linalg.svdvals(up @ down)
        expected = float((values**2).sum() / values[0] ** 2)
        assert row.stable_rank == pytest.approx(expected, rel=1e-4)
    quiet = merge(base.file, [Addend(path, 0.7)], tmp_path / "b.safetensors")
    assert {row.stable_rank for row in quiet.matched} == {None}
