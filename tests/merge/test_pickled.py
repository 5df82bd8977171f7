"""A .ckpt is read as data: never run, never copied, and refused where that cannot be."""

import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from merge import MergeError
from merge.layout import look
from merge.pickled import header_of, open_reader


class Creates:
    """Unpickled by a careless loader, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def tensors_of(base):
    """Tensors with memory of their own, as torch.save wants them."""
    return {key: tensor.clone() for key, tensor in load_file(base.file).items()}


def contents(base):
    (part,) = base.parts
    with part.reader() as reader:
        assert not reader.copyable
        return {key: bytes(reader.read(entry)) for key, entry in part.header.entries.items()}


@pytest.mark.parametrize("wrapped", [True, False])
def test_ckpt_equals_safetensors(tiny, tmp_path, wrapped):
    tensors = tensors_of(tiny("sdxl"))
    tensors["strided"] = torch.arange(6.0).reshape(2, 3).T
    tensors["position_ids"] = torch.arange(3)
    path = tmp_path / "base.ckpt"
    torch.save({"state_dict": tensors, "global_step": 7} if wrapped else tensors, path)
    base, original = look(path), look(tiny("sdxl").file)
    assert base.family == "sdxl"
    assert {k: v.shape for k, v in base.layers.items()} == {
        k: v.shape for k, v in original.layers.items()
    }
    assert base.spellings == original.spellings
    assert base.parts[0].weights == original.parts[0].weights
    found = contents(base)
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert found[key] == tensor.contiguous().numpy().tobytes(), key


def test_pieces_of_a_tensor(tiny, tmp_path):
    path = tmp_path / "base.ckpt"
    torch.save(tensors_of(tiny("tiny")), path)
    (part,) = look(path).parts
    entry = part.header.entries["model.diffusion_model.out.2.weight"]
    with part.reader() as reader:
        whole = reader.read(entry)
        assert reader.read(entry, 6, 10) == whole[6:16]
        assert b"".join(reader.pieces(entry)) == whole
    assert any(whole)


def test_the_header_is_laid_out_without_holes(tmp_path):
    tensors = {"a": torch.ones(3).half(), "b": torch.ones(2), "c": torch.arange(2)}
    torch.save(tensors, tmp_path / "a.ckpt")
    header = header_of(tmp_path / "a.ckpt")
    assert list(header.entries) == ["a", "b", "c"]
    places = {name: (entry.begin, entry.end) for name, entry in header.entries.items()}
    assert places == {"c": (0, 16), "b": (16, 24), "a": (24, 30)}


def test_code_in_a_pickle_is_not_run(tiny, tmp_path):
    """The same file, opened without care, does what it says."""
    path, trace = tmp_path / "evil.ckpt", tmp_path / "trace"
    torch.save({"state_dict": tensors_of(tiny("tiny")), "x": Creates(trace)}, path)
    with pytest.raises(MergeError, match="without running code") as caught:
        look(path)
    assert str(path) in str(caught.value) and caught.value.exit_code == 2
    assert not trace.exists()
    torch.load(path, weights_only=False)["x"].close()
    assert trace.exists()


def test_what_trainers_leave_beside_the_weights(tiny, tmp_path, monkeypatch):
    """Old checkpoints of Lightning hold its callbacks' class and numpy's numbers."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    lightning = ModuleType(name)
    lightning.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    modules = {"pytorch_lightning": ModuleType("pytorch_lightning"), name: lightning}
    modules["pytorch_lightning.callbacks"] = ModuleType("pytorch_lightning.callbacks")
    tensors, path = tensors_of(tiny("tiny")), tmp_path / "old.ckpt"
    rest = {"callbacks": {lightning.ModelCheckpoint: {"best": np.float64(0.5)}}, "step": 3}
    with monkeypatch.context() as context:
        for full, module in modules.items():
            context.setitem(sys.modules, full, module)
        torch.save({"state_dict": tensors, **rest}, path)
    assert contents(look(path)).keys() == tensors.keys()
    assert "pytorch_lightning" not in sys.modules
    with pytest.raises(pickle.UnpicklingError):  # The leave was for one file.
        torch.load(path, weights_only=True)


def test_plain_pickles_and_old_checkpoints_are_refused(tmp_path):
    trace = tmp_path / "trace"
    for protocol in (2, 4, 5):
        path = tmp_path / f"{protocol}.ckpt"
        path.write_bytes(pickle.dumps(Creates(trace), protocol))
        with pytest.raises(MergeError, match="a pickle of the old form"):
            look(path)
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(MergeError, match="a pickle of the old form"):
        look(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "holds a list"),
        ({7: torch.ones(2)}, "names a tensor 7"),
        ({"a": torch.ones(2)}, "something else"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "complex64"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, words):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(MergeError, match=words):
        look(tmp_path / "a.ckpt")


@pytest.mark.parametrize("keep", [3, 100, 0.5, 0.99])
def test_truncated(tiny, tmp_path, keep):
    path = tmp_path / "a.ckpt"
    torch.save(tensors_of(tiny("tiny")), path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(MergeError) as caught:
        look(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_looks_like_a_pickle(tmp_path, length):
    """The first bytes of a safetensors file are its header's length: 80 03 for 896 bytes."""
    text = b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'.ljust(length)
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + text + b"abc")
    header = header_of(path)
    with open_reader(path, header) as reader:
        assert reader.copyable and reader.read(header.entries["a"]) == b"abc"
