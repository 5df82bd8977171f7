"""The LoRA that a round trains, through peft: attached, taken apart into kohya's tensors, saved."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.artefacts.files import write_bytes
from pipeline.artefacts.strength import Strength, parted
from pipeline.artefacts.tensors import ordered
from pipeline.recipe.lora import Lora
from pipeline.train.counted import seed_of
from pipeline.train.denoiser import ENCODERS, Denoiser
from pipeline.train.dora import begin_magnitudes, dora_scale, has_magnitudes
from pipeline.train.naming import kohya_names
from pipeline.train.principal import whole
from pipeline.train.targets import Target, targets

NAME = "round"


def attach(network: Denoiser, lora: Lora, seed: int) -> list[Target]:
    """Adds a fresh LoRA: down by Kaiming from `seed`, up zero, so that the network is unchanged.

    All other weights are frozen; the factors are float32 whatever the network's dtype.
    """
    covered = targets(network, lora)
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "lora"))
        inject(network, covered, NAME, dora=lora.dora, dropout=lora.dropout)
    for parameter in trainable(network):
        parameter.data = parameter.data.float()
    return covered


def inject(
    network: Denoiser,
    covered: Sequence[Target],
    name: str,
    *,
    dora: bool = False,
    dropout: float = 0,
) -> None:
    """Adds factors of these ranks under `name`, and lets every adapter of each layer act.

    Only those of the round's own adapter are trained.

    Args:
        dora: with magnitudes, those of the weights.
        dropout: share of a layer's input that is left out in training.
    """
    first = covered[0]
    config = LoraConfig(
        r=first.rank,
        lora_alpha=first.alpha,  # peft only divides it; alphas are reals
        target_modules=[t.name for t in covered],
        rank_pattern={exactly(t.name): t.rank for t in covered},
        alpha_pattern={exactly(t.name): t.alpha for t in covered},
        init_lora_weights=True,
        use_dora=dora,
        lora_dropout=dropout,
    )
    inject_adapter_in_model(config, network, name)
    del network.peft_config  # Only for saving, which peft does not do here; it warns of a second.
    for _, layer in layers(network):
        layer.set_adapter(list(layer.lora_A))
        if has_magnitudes(layer, name):
            begin_magnitudes(layer, name)
    for path, parameter in network.named_parameters():
        parameter.requires_grad_(f".{NAME}." in path)


def exactly(name: str) -> str:
    return "^" + name.replace(".", r"\.")


def layers(network: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """(path, peft layer) of every adapted layer."""
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def layer_of(parameter: str) -> str:
    """The path of the layer that a factor, named as the network's parameters are, adapts."""
    return parameter.partition(".lora_")[0]


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The round's factors, in module order."""
    return [p for p in network.parameters() if p.requires_grad]


def set_strength(network: Denoiser, strength: Strength, name: str = NAME) -> None:
    """Multiplies the delta of every layer of an adapter by `strength`; weights stay as they are."""
    unet, text = parted(strength)
    for path, layer in layers(network):
        factor = text if path.startswith(ENCODERS) else unet
        if has_magnitudes(layer, name):
            layer.lora_magnitude_vector[name].strength = factor
        elif name in layer.lora_A:
            layer.set_scale(name, factor)


def factors(network: Denoiser) -> dict[str, Tensor]:
    """Under kohya's names: lora_down (r, in[, k, k]), lora_up (out, r[, 1, 1]) and alpha (); of a
    DoRA also dora_scale (out, 1[, 1, 1])."""
    tensors = {}
    for key, layer in named(network):
        down, up = whole(layer, NAME)
        alpha = float(layer.lora_alpha[NAME]) * len(down) / len(layer.lora_A[NAME].weight)
        tensors[f"{key}.lora_down.weight"] = down.detach().float().cpu().contiguous()
        tensors[f"{key}.lora_up.weight"] = up.detach().float().cpu().contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
        if has_magnitudes(layer, NAME):
            tensors[f"{key}.dora_scale"] = dora_scale(layer, NAME)
    return tensors


def named(network: Denoiser) -> Iterator[tuple[str, LoraLayer]]:
    """(kohya's name, peft layer) of every layer that the round's adapter covers."""
    adapted = {path: layer for path, layer in layers(network) if NAME in layer.lora_A}
    for path, name in kohya_names(network, adapted).items():
        yield name, adapted[path]


def save_lora(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a kohya-format file, in float32: late rounds' factors are too small for fp16."""
    write_bytes(path, ordered(save(dict(tensors), metadata=dict(metadata))))
