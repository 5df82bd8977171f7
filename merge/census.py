"""Collects the layers of a base, tensor by tensor, while a layout reads its keys.

census.unet(part, entry, "mid_block.resnets.0.conv1.bias", ldm, "M00")  →  Layer.bias of …conv1
"""

from dataclasses import dataclass, field

from merge.container import Entry
from merge.errors import MergeError
from merge.layers import Family, Layer, Network, Place
from merge.spelling import spellings

EMBEDDINGS = "text_model.embeddings."
"""Two axes like a matrix, but a LoRA of one is another thing: they are weights and no layers."""


@dataclass
class _Draft:
    """A layer whose tensors are still being found."""

    network: Network
    block: str
    ldm: str
    shape: tuple[int, ...] = ()
    places: dict[str, list[Place]] = field(default_factory=lambda: {"weight": [], "bias": []})


class Census:
    """What was found so far: layers by name, and which keys of which part are weights."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._drafts: dict[str, _Draft] = {}
        self._weights: dict[int, set[str]] = {}

    def weight(self, part: int, entry: Entry) -> None:
        """A tensor that is a weight of the model."""
        self._weights.setdefault(part, set()).add(entry.name)

    def unet(self, part: int, entry: Entry, module: str, ldm: str, block: str) -> None:
        """A tensor of the UNet: its key as diffusers has it, and as ldm has it (no prefixes)."""
        self.weight(part, entry)
        self._add(part, entry, "unet", module, ldm.rpartition(".")[0], block, None, False)

    def text(
        self,
        part: int,
        entry: Entry,
        network: Network,
        module: str,
        third: int | None = None,
        transposed: bool = False,
    ) -> None:
        """A tensor of a text encoder: its key as transformers has it (`text_model.…`).

        third: 0, 1 or 2 where the layer is that third of the entry's rows.
        """
        self.weight(part, entry)
        if not module.startswith(EMBEDDINGS):
            self._add(part, entry, network, module, "", "BASE", third, transposed)

    def _add(
        self,
        part: int,
        entry: Entry,
        network: Network,
        key: str,
        ldm: str,
        block: str,
        third: int | None,
        transposed: bool,
    ) -> None:
        module, _, tensor = key.rpartition(".")
        if tensor not in ("weight", "bias") or len(entry.shape) not in (1, 2, 4):
            return
        rows, *inner = entry.shape
        if third is not None:
            if rows % 3:
                raise MergeError(
                    f"{entry.name} has {rows} rows, which are not query, key and value in thirds: "
                    "no OpenCLIP text encoder of SDXL's kind."
                )
            rows //= 3
        name = f"{network}.{module}"
        draft = self._drafts.setdefault(name, _Draft(network, block, ldm))
        draft.places[tensor].append(Place(part, entry.name, rows * (third or 0), rows, transposed))
        if tensor == "weight":
            shape = (*inner[::-1], rows) if transposed else (rows, *inner)
            if draft.shape not in ((), shape):
                raise MergeError(
                    f"{entry.name} has the shape {list(entry.shape)}, but {name} stands in the "
                    f"same file as {list(draft.shape)} too: the two copies are of different models."
                )
            draft.shape = shape

    def weights(self, part: int) -> frozenset[str]:
        """The keys of a part that are weights of the model."""
        return frozenset(self._weights.get(part, ()))

    def layers(self) -> dict[str, Layer]:
        """By name, in the order in which they were found."""
        return {
            name: Layer(
                name,
                draft.network,
                draft.block,
                draft.shape,
                tuple(draft.places["weight"]),
                tuple(draft.places["bias"]),
            )
            for name, draft in self._found()
        }

    def spellings(self) -> dict[str, str]:
        """What a LoRA file may call a layer → its name."""
        return {
            spelled: name
            for name, draft in self._found()
            for spelled in spellings(name, draft.ldm, self._family)
        }

    def _found(self) -> list[tuple[str, _Draft]]:
        return [(name, draft) for name, draft in self._drafts.items() if draft.places["weight"]]
