"""Reads from a checkpoint's own keys how its UNet and VAE are built: levels, depth, attention.

So models of unusual size need no configuration, and no constant of SD 1.5 is written down here.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from merge.errors import MergeError


@dataclass(frozen=True)
class Level:
    """One resolution of a UNet or VAE half, in the order in which data flows."""

    resnets: int
    attention: bool
    """Whether an attention follows each resnet."""
    sampler: bool
    """Whether it ends in a down- or upsampler."""


@dataclass(frozen=True)
class UNetShape:
    """Where everything is in a UNet; the middle is always resnet, attention, resnet."""

    down: tuple[Level, ...]
    up: tuple[Level, ...]


@dataclass(frozen=True)
class VaeShape:
    """Resnets per level of the encoder and decoder, in the order in which data flows."""

    encoder: tuple[Level, ...]
    decoder: tuple[Level, ...]


def unet_shape_of_ldm(keys: Iterable[str]) -> UNetShape:
    """Reads a UNet's shape from ldm keys (without `model.diffusion_model.`).

    Raises:
        MergeError: blocks are missing, or hold what SD's UNet does not.
    """
    blocks = _numbered(keys, r"(input_blocks|output_blocks)\.(\d+)\.(.+)")
    middle = _numbered(keys, r"(middle_block)\.(\d+)\.(.+)")
    levels: dict[str, list[Level]] = {"input_blocks": [], "output_blocks": []}
    for side, done in levels.items():
        # Block 0 of the input side is conv_in.
        first = 1 if side == "input_blocks" else 0
        last = max((number for name, number in blocks if name == side), default=-1)
        attentions: list[bool] = []
        for number in range(first, last + 1):
            inside = blocks.get((side, number), set())
            if "0.op.weight" in inside:
                done.append(_level(f"{side}.{number}", attentions, True))
                attentions = []
                continue
            if "0.in_layers.2.weight" not in inside:
                raise MergeError(
                    f"The UNet's {side}.{number} is missing or no residual block: "
                    "this is no Stable Diffusion UNet, or a part of one."
                )
            attentions.append("1.proj_in.weight" in inside)
            if side == "output_blocks" and inside & {"1.conv.weight", "2.conv.weight"}:
                done.append(_level(f"{side}.{number}", attentions, True))
                attentions = []
        done.append(_level(f"{side}.{last}", attentions, False))
    resnets = [
        "in_layers.2.weight" in middle.get(("middle_block", number), set()) for number in range(3)
    ]
    if resnets != [True, False, True]:
        raise MergeError(
            "The UNet's middle_block is not resnet, attention, resnet: "
            "this is no Stable Diffusion UNet, or a part of one."
        )
    return UNetShape(tuple(levels["input_blocks"]), tuple(levels["output_blocks"]))


def unet_shape_of_diffusers(keys: Iterable[str]) -> UNetShape:
    """Reads a UNet's shape from diffusers keys. Raises MergeError as `unet_shape_of_ldm` does."""
    blocks = _numbered(keys, r"(down_blocks|up_blocks)\.(\d+)\.(.+)")
    levels: dict[str, list[Level]] = {"down_blocks": [], "up_blocks": []}
    for side, done in levels.items():
        sampler = (
            "downsamplers.0.conv.weight" if side == "down_blocks" else "upsamplers.0.conv.weight"
        )
        for i in range(max((n for name, n in blocks if name == side), default=-1) + 1):
            inside = blocks.get((side, i), set())
            resnets = sum(bool(re.fullmatch(r"resnets\.\d+\.conv1\.weight", k)) for k in inside)
            attentions = [f"attentions.{j}.proj_in.weight" in inside for j in range(resnets)]
            done.append(_level(f"{side}.{i}", attentions, sampler in inside))
        if not done:
            raise MergeError(f"There is no {side}.0: this is no diffusers UNet2DConditionModel.")
    return UNetShape(tuple(levels["down_blocks"]), tuple(levels["up_blocks"]))


def vae_shape_of_ldm(keys: Iterable[str]) -> VaeShape:
    """Reads a VAE's shape from ldm keys (without `first_stage_model.`)."""
    found = _numbered(keys, r"(encoder\.down|decoder\.up)\.(\d+)\.(.+)")
    encoder = _vae_levels(found, "encoder.down", r"block\.\d+\.conv1\.weight", "downsample")
    decoder = _vae_levels(found, "decoder.up", r"block\.\d+\.conv1\.weight", "upsample")
    return VaeShape(encoder, decoder[::-1])


def vae_shape_of_diffusers(keys: Iterable[str]) -> VaeShape:
    """Reads a VAE's shape from diffusers keys."""
    found = _numbered(keys, r"(encoder\.down_blocks|decoder\.up_blocks)\.(\d+)\.(.+)")
    pattern = r"resnets\.\d+\.conv1\.weight"
    return VaeShape(
        _vae_levels(found, "encoder.down_blocks", pattern, "downsamplers.0"),
        _vae_levels(found, "decoder.up_blocks", pattern, "upsamplers.0"),
    )


def _vae_levels(
    found: Mapping[tuple[str, int], set[str]], side: str, resnet: str, sampler: str
) -> tuple[Level, ...]:
    levels = []
    for i in range(max((n for name, n in found if name == side), default=-1) + 1):
        inside = found.get((side, i), set())
        resnets = sum(bool(re.fullmatch(resnet, key)) for key in inside)
        levels.append(_level(f"{side}.{i}", [False] * resnets, f"{sampler}.conv.weight" in inside))
    return tuple(levels)


def _level(where: str, attentions: list[bool], sampler: bool) -> Level:
    if not attentions:
        raise MergeError(f"There is no residual block at {where}: the model is incomplete.")
    if any(attentions) != all(attentions):
        raise MergeError(
            f"Only some blocks before {where} have attention: no Stable Diffusion UNet."
        )
    return Level(len(attentions), attentions[0], sampler)


def _numbered(keys: Iterable[str], pattern: str) -> dict[tuple[str, int], set[str]]:
    found: dict[tuple[str, int], set[str]] = defaultdict(set)
    for key in keys:
        match = re.fullmatch(pattern, key)
        if match:
            found[match[1], int(match[2])].add(match[3])
    return found
