"""Reads .ckpt and .pt through torch's weights-only loading: a header and tensors, as safetensors.

Nothing in the file is run, and nothing is copied: the tensors stay mapped from the file. What a
merge writes is .safetensors in any case.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from merge.container import Entry, Header, Reader, is_pickled, read_header
from merge.errors import MergeError

DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16",
    torch.int32: "I32", torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip

ZIP = b"PK\x03\x04"

INERT = (
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "dtype"),
)
"""What trainers of old left beside the weights. Each stands for an object that does nothing."""


def header_of(path: Path) -> Header:
    """The header of a weight file of either kind. Raises MergeError as `read_header` does."""
    return _header(_load(path)) if _is_pickled(path) else read_header(path)


def open_reader(path: Path, header: Header) -> Reader:
    """Opens a weight file of either kind, whose header is known."""
    return PickledReader(path, header) if _is_pickled(path) else Reader(path, header)


class PickledReader(Reader):
    """An open .ckpt: reads as a safetensors file does, with `header_of` as its header."""

    copyable = False

    def __init__(self, path: Path, header: Header) -> None:
        super().__init__(path, header)
        self._tensors = _load(path)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tensors = {}
        super().__exit__(kind, error, trace)

    def read_into(self, entry: Entry, offset: int, view: memoryview) -> None:
        """Fills `view` with a tensor's bytes from `offset` on."""
        if len(view):
            content = self._tensors[entry.name].reshape(-1).view(torch.uint8)
            torch.frombuffer(view, dtype=torch.uint8).copy_(content[offset : offset + len(view)])


def _is_pickled(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return is_pickled(file.read(8), file.seek(0, 2))
    except OSError as error:
        raise MergeError(f"{path} cannot be read: {error.strerror}. Check the path.") from None


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, mapped from the file, not read.

    Raises:
        MergeError: it holds more than tensors and plain numbers, is damaged, or of torch < 1.6.
    """
    with open(path, "rb") as file:
        if file.read(len(ZIP)) != ZIP:
            raise MergeError(
                f"{path} is a pickle of the old form (torch before 1.6, or no checkpoint), which "
                "can run code when opened and cannot be streamed. Get the .safetensors form of it."
            )
    try:
        with torch.serialization.safe_globals([_inert(*names) for names in INERT]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 - damage shows as errors of every kind
        reason = str(error).strip().partition("\n")[0]
        raise MergeError(
            f"{path} is no checkpoint that can be opened without running code of it, or it is "
            f"damaged; nothing in it was run ({reason}). Get the .safetensors form of it."
        ) from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise MergeError(
            f"{path} holds a {type(content).__name__}, no table of tensors: it is no checkpoint."
        )
    return {_name(path, key): t.detach() for key, t in content.items() if isinstance(t, Tensor)}


class _Inert:
    """Takes the place of an object in a pickle: accepts anything, keeps nothing."""

    def __new__(cls, *_: object) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


@cache
def _inert(module: str, name: str) -> type:
    """torch looks for what a pickle may name by module and name."""
    return type(name, (_Inert,), {"__module__": module})


def _name(path: Path, key: object) -> str:
    if not isinstance(key, str):
        raise MergeError(f"{path} names a tensor {key!r}, which is no text: it is no checkpoint.")
    return key


def _header(tensors: Mapping[str, Tensor]) -> Header:
    """Lays the tensors out as if they lay in a safetensors file, the wide ones first."""
    entries = {}
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda pair: -pair[1].element_size()):
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES:
            raise MergeError(f"{name} is {tensor.layout} of {tensor.dtype}, which is not read.")
        end = position + tensor.numel() * tensor.element_size()
        entries[name] = Entry(name, DTYPES[tensor.dtype], tuple(tensor.shape), position, end)
        position = end
    return Header({name: entries[name] for name in tensors}, {}, 0)
