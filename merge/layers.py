"""What a base is made of, as records: weight files, layers, and where each layer's tensors lie."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from merge.container import Header, Reader

Family = Literal["sd15", "sdxl"]
Network = Literal["unet", "te1", "te2"]
"""`te1` is CLIP-L, which SD 1.5 has alone; `te2` is SDXL's OpenCLIP bigG."""


@dataclass(frozen=True)
class Place:
    """Where a layer's weight or bias lies: some rows of one key of one weight file.

    OpenCLIP keeps query, key and value as thirds of one tensor (`first` > 0, `rows` < all), and
    its text projection transposed.
    """

    part: int
    """Index into `Base.parts`."""
    key: str
    first: int
    """The layer's first row in the tensor."""
    rows: int
    """How many rows it has there; all of the tensor's, but for thirds."""
    transposed: bool = False
    """The file holds (in, out) where the layer's weight is (out, in)."""


@dataclass(frozen=True)
class Layer:
    """One layer that a LoRA may change."""

    name: str
    """NETWORK.MODULE in diffusers' and transformers' names, such as
    `unet.mid_block.attentions.0.proj_in` or `te1.text_model.encoder.layers.0.mlp.fc1`."""
    network: Network
    block: str
    """BASE (text encoders), IN00-IN11, M00 or OUT00-OUT11: the ldm block, as block weights count
    them. time_embed and label_emb are IN00; the UNet's `out` is its last OUT block."""
    shape: tuple[int, ...]
    """Of the weight, as (out, in), (out, in, height, width), or (channels,) for norms; a third's
    own rows, and never transposed."""
    weight: tuple[Place, ...]
    """The weight, and the moving average's copy of it where the file has one."""
    bias: tuple[Place, ...]


@dataclass(frozen=True)
class Part:
    """One weight file of a base."""

    path: Path
    place: str
    """Where it is inside a diffusers folder; empty for a single file."""
    header: Header
    weights: frozenset[str]
    """Keys known to be model weights: checked for NaN, and cast if a dtype is asked for."""

    def reader(self) -> Reader:
        """Opens the file, a .ckpt too. Raises MergeError where it cannot be read."""
        from merge.pickled import open_reader  # Needs torch, which who counts layers does not.

        return open_reader(self.path, self.header)

    def label(self, key: str) -> str:
        """A tensor's name for a person: its key, in a folder after its file."""
        return f"{self.place}:{key}" if self.place else key


@dataclass(frozen=True)
class Base:
    """A checkpoint, looked at but not read: what `layout.look` gives."""

    path: Path
    family: Family
    folder: bool
    """A diffusers folder, not a single file."""
    parts: tuple[Part, ...]
    layers: Mapping[str, Layer]
    """By `Layer.name`, in the order of the file."""
    spellings: Mapping[str, str] = field(repr=False)
    """Every name that a LoRA file may give to a layer → `Layer.name`: kohya's with diffusers' and
    with sgm's block names, `lora_te_`, `lora_te1_`, `lora_te2_`, and the dotted ones of diffusers
    and PEFT (`unet.…`, `text_encoder.…`, `text_encoder_2.…`, `base_model.model.…`)."""
