"""LoRAs from files beside a network's weights: frozen, each at a strength of its own, none merged.

So a round can start from earlier ones that its base's precision would hide, strengths can be
judged before anything is merged, and a part of a LoRA can be taken back (strength -1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.artefacts.strength import TEXT, Strength
from pipeline.errors import RequestError
from pipeline.train.adapter import inject, layers, set_strength
from pipeline.train.carry import Carried
from pipeline.train.denoiser import Denoiser, plain
from pipeline.train.dora import fill_magnitudes
from pipeline.train.naming import kohya_names
from pipeline.train.plan import Earlier
from pipeline.train.targets import Target

PARTS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "alpha": "alpha",
    "dora_scale": "magnitudes",
}


@dataclass(frozen=True)
class Delta:
    """What a LoRA adds to one layer: scale x up @ down, or what a DoRA makes of it."""

    down: Tensor
    """(r, in[, k, k])"""
    up: Tensor
    """(out, r[, 1, 1])"""
    alpha: float
    """The scale is alpha / r."""
    magnitudes: Tensor | None = None
    """(out, 1[, 1, 1]) of a DoRA."""


@dataclass(frozen=True)
class Beside:
    """One LoRA that stands beside the weights."""

    name: str
    """Of the adapter: each has its own."""
    deltas: Mapping[str, Delta]
    """By kohya's name of the layer."""
    strength: Strength

    @property
    def is_dora(self) -> bool:
        return any(delta.magnitudes is not None for delta in self.deltas.values())


def require_alone(loras: Sequence[Beside]) -> None:
    """Raises RequestError where one of several is a DoRA."""
    dora = next((lora.name for lora in loras if lora.is_dora), None)
    if dora is not None and len(loras) > 1:
        raise RequestError(
            f"{dora} is a DoRA, whose effect depends on all that was added before it: several "
            "cannot stand beside the weights, nor their strengths be fitted together. Rebuild the "
            "chain at strengths of your own with `urushi rebuild`."
        )


def read_beside(earlier: Earlier) -> Beside:
    """From a file of kohya's format, of two factors a layer, as training here writes it.

    Raises:
        RequestError: it is of another format or form.
    """
    path = earlier.file
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(path).items():
        layer, _, part = key.partition(".")
        if part not in PARTS:
            raise RequestError(
                f"{key} in {path} is no part of a LoRA of two factors in kohya's layout. "
                "Only those can stand beside a network; merge it instead "
                '([train].earlier_rounds = "merged"), or convert it with `urushi lora convert`.'
            )
        found.setdefault(layer, {})[PARTS[part]] = tensor
    deltas = {}
    for layer, parts in found.items():
        if not {"down", "up"} <= parts.keys():
            raise RequestError(f"{path} has only one factor for {layer}. Copy or train it again.")
        alpha = parts.get("alpha")
        rank = len(parts["down"])
        scale = float(rank) if alpha is None else float(alpha)
        deltas[layer] = Delta(parts["down"], parts["up"], scale, parts.get("magnitudes"))
    return Beside(earlier.name, deltas, earlier.strength)


def covers_text(path: Path) -> bool:
    """Whether a LoRA file of kohya's format changes a text encoder."""
    with safe_open(path, "pt") as file:
        return any(key.startswith(TEXT) for key in file.keys())  # noqa: SIM118


def taken_back(carried: Carried) -> list[Beside]:
    """What a LoRA is given of the one before, at -1."""
    deltas = {n: Delta(part.down, part.up, float(len(part.down))) for n, part in carried.items()}
    return [Beside("carried", deltas, -1.0)] if deltas else []


def stand_beside(network: Denoiser, loras: Sequence[Beside]) -> None:
    """Attaches `loras` to `network`, frozen, each at its strength.

    Raises:
        RequestError: one has a layer that the network lacks, or of other sizes; or a DoRA is not
            alone: what it makes of the weights depends on what else was added to them.
    """
    require_alone(loras)
    linear = dict(plain(network.named_modules()))
    places = {name: path for path, name in kohya_names(network, linear).items()}
    for lora in loras:
        paths = {}
        for name, delta in lora.deltas.items():
            path = places.get(name)
            if path is None or not _fits(linear[path], delta):
                sizes = f"{len(delta.up)} x {delta.down[0].numel()}"
                raise RequestError(
                    f"{lora.name} changes {name} as a layer of {sizes}, which this base does not "
                    "have. It was trained on another base."
                )
            paths[path] = delta
        covered = [Target(path, len(d.down), d.alpha) for path, d in paths.items()]
        inject(network, covered, lora.name, dora=lora.is_dora)
        for path, layer in layers(network):
            if path in paths:
                delta = paths[path]
                _fill(layer.lora_A[lora.name], delta.down)
                _fill(layer.lora_B[lora.name], delta.up)
                if delta.magnitudes is not None:
                    fill_magnitudes(layer, lora.name, delta.magnitudes)
        set_strength(network, lora.strength, lora.name)


def _fits(module: nn.Linear | nn.Conv2d, delta: Delta) -> bool:
    # Quantised weights are packed: the layer itself knows its size.
    if isinstance(module, nn.Linear):
        sizes = (module.out_features, module.in_features)
    else:
        kernel = module.kernel_size[0] * module.kernel_size[1]
        sizes = (module.out_channels, module.in_channels * kernel)
    return (len(delta.up), delta.down[0].numel()) == sizes


def _fill(factor: nn.Linear | nn.Conv2d, values: Tensor) -> None:
    weight = factor.weight
    weight.data = values.float().reshape(weight.shape).to(weight.device)
