"""LoRAs from files onto a UNet, beside one another: each at a strength of its own, none merged.

What is judged this way is what a merge at those strengths would make, but for the merge's cast.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import RequestError
from pipeline.train.adapter import exactly, layers
from pipeline.train.naming import unet_names


class AttachedLoras:
    """The LoRAs of some kohya-format files on one UNet, which they change in place.

    Raises:
        RequestError: a file that is not of that format, or not of this UNet.
    """

    def __init__(self, unet: UNet2DConditionModel, files: Sequence[Path]) -> None:
        self._names = [f"lora_{number}" for number in range(len(files))]
        linear = [n for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        places = {kohya: module for module, kohya in unet_names(unet, linear).items()}
        for name, file in zip(self._names, files, strict=True):
            _attach(unet, name, _modules(file, places))
        self._layers = [layer for _, layer in layers(unet)]
        for layer in self._layers:
            layer.set_adapter([name for name in self._names if name in layer.lora_A])
        unet.requires_grad_(False)

    def set_strengths(self, strengths: Sequence[float]) -> None:
        """One factor per file, in their order, on top of alpha / rank."""
        for name, strength in zip(self._names, strengths, strict=True):
            for layer in self._layers:
                if name in layer.lora_A:
                    layer.set_scale(name, strength)


def _modules(file: Path, places: dict[str, str]) -> dict[str, dict[str, Tensor]]:
    """The file's down, up and alpha by diffusers module name."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(file).items():
        module, _, part = key.partition(".")
        place = places.get(module)
        if place is None or part not in ("lora_down.weight", "lora_up.weight", "alpha"):
            raise RequestError(
                f"{key} in {file} is no part of a LoRA of two factors on this UNet, in kohya's "
                "layout. `urushi lora convert` may write it so."
            )
        found.setdefault(place, {})[part] = tensor
    return found


def _attach(unet: UNet2DConditionModel, name: str, modules: dict[str, dict[str, Tensor]]) -> None:
    ranks = {place: len(parts["lora_down.weight"]) for place, parts in modules.items()}
    alphas = {place: float(parts.get("alpha", ranks[place])) for place, parts in modules.items()}
    first = next(iter(modules))
    config = LoraConfig(
        r=ranks[first],
        lora_alpha=alphas[first],  # peft only divides it; alphas are reals
        target_modules=list(modules),
        rank_pattern={exactly(place): rank for place, rank in ranks.items()},
        alpha_pattern={exactly(place): alpha for place, alpha in alphas.items()},
    )
    with warnings.catch_warnings():
        # That there are several is the point.
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        unet.add_adapter(config, adapter_name=name)
    for place, layer in layers(unet):
        parts = modules.get(place)
        if parts is None:
            continue
        for factor, key in ((layer.lora_A, "lora_down.weight"), (layer.lora_B, "lora_up.weight")):
            weight = factor[name].weight
            weight.data = parts[key].float().reshape(weight.shape)
