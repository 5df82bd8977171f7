"""Tells which model a LoRA was made for, and what a file is that is no checkpoint. Names only.

An SDXL LoRA on SD 1.5 is refused here by name, before any hash is taken or byte written.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from merge.errors import MergeError
from merge.layers import Base, Family

NAMES: Mapping[Family, str] = {"sd15": "SD 1.5", "sdxl": "SDXL"}

CONTEXT = {768: "sd15", 1024: "sd2", 2048: "sdxl"}
"""Width of what cross-attention reads, by the model as it was published."""

OTHERS = (
    (
        r"(lora_unet_|lora_transformer_|diffusion_model\.|transformer\.)(double|single)_blocks",
        "Flux",
    ),
    (r"(lora_transformer_|transformer\.)single_transformer_blocks", "Flux"),
    (r"(lora_unet_|lora_transformer_|diffusion_model\.|transformer\.)joint_blocks", "SD 3"),
    (r"(lora_transformer_|transformer\.)transformer_blocks", "SD 3, Flux or PixArt"),
    (r"lora_te3_|text_encoder_3\.|text_encoders\.t5", "SD 3 or Flux"),
    (r"lora_prior_|prior_unet\.", "Stable Cascade"),
    (
        r"(lora_unet_|diffusion_model\.)(blocks|layers|transformer_blocks)[_.]\d",
        "a transformer model",
    ),
    (r"transformer\.", "a transformer model"),
)
"""How modules of other models' LoRAs begin, and the model."""

TE2_NAMES = re.compile(r"lora_te2_|text_encoder_2\.|text_encoders\.clip_g\.")
SGM_NAMES = re.compile(
    r"lora_unet_(input_blocks|middle_block|output_blocks|label_emb|add_embedding)_"
    r"|(unet|base_model\.model)\.add_embedding\.|diffusion_model\.label_emb\."
)
"""sgm's block names, which kohya writes for SDXL alone, and the layer that SDXL alone has."""
CROSS = re.compile(r".*attn2[._]to_[kv]$")

KINDS = (
    (r"lora_|.*\.(lora_[AB]|lora_down|lora_up|lora\.down|lora\.up|hada_w1_a|lokr_w1)", "a LoRA"),
    (r"control_model\.|controlnet_|input_hint_block\.", "a ControlNet"),
    (r"model\.diffusion_model\.(double|single)_blocks\.|(double|single)_blocks\.", "a Flux model"),
    (r"model\.diffusion_model\.joint_blocks\.|joint_blocks\.", "an SD 3 model"),
    (r"model\.diffusion_model\.", "a Stable Diffusion checkpoint"),
    (r"(down_blocks|mid_block|up_blocks)\.|(input_blocks|output_blocks)\.", "a UNet alone"),
    (
        r"first_stage_model\.|(encoder|decoder)\.(down|up|mid|down_blocks|up_blocks|mid_block)[._]|quant_conv",
        "a VAE",
    ),
    (r"text_model\.|transformer\.resblocks\.", "a text encoder"),
    (r"string_to_param|emb_params|clip_[lg]$", "a textual inversion"),
)
"""How keys of a kind of file begin, most telling first."""


class Adapted(Protocol):
    """What is asked of a module of a LoRA file; `lora.Module` is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class AdapterFile(Protocol):
    """What is asked of a LoRA file; `lora.LoraFile` is one."""

    @property
    def path(self) -> Path: ...

    @property
    def modules(self) -> Mapping[str, Adapted]: ...


def what_is(keys: Iterable[str]) -> str:
    """What a file is that holds these keys: "a LoRA", "a ControlNet", …; "something else"."""
    names = list(keys)
    for pattern, kind in KINDS:
        if any(re.match(pattern, name) for name in names):
            return kind
    return "something else"


def family_of_lora(file: AdapterFile) -> Family | None:
    """The family that a LoRA's module names and sizes speak of; None where they do not say.

    Raises:
        MergeError: they speak of another model: Flux, SD 3, SD 2, …
    """
    names = tuple(file.modules)
    for pattern, model in OTHERS:
        sign = next((name for name in names if re.match(pattern, name)), None)
        if sign is not None:
            raise MergeError(
                f"{file.path} is a LoRA for {model} ({sign}); "
                "only those for SD 1.5 and SDXL are read."
            )
    if any(TE2_NAMES.match(name) for name in names):
        return "sdxl"
    widths = {
        CONTEXT.get(m.shape[1]): name for name, m in file.modules.items() if CROSS.match(name)
    }
    if widths.keys() == {"sd2"}:
        raise MergeError(
            f"{file.path} is a LoRA for SD 2 ({widths['sd2']} reads 1024 channels); "
            "only those for SD 1.5 and SDXL are read."
        )
    for family in NAMES:
        if widths.keys() == {family}:
            return family
    if any(SGM_NAMES.match(name) for name in names):
        return "sdxl"
    return "sd15" if any(name.startswith("lora_te_") for name in names) else None


def refuse_other_family(file: AdapterFile, base: Base) -> None:
    """Raises MergeError if the LoRA was made for another family than the base is of."""
    family = family_of_lora(file)
    if family is not None and family != base.family:
        raise MergeError(
            f"{file.path} is an {NAMES[family]} LoRA; {base.path} is {NAMES[base.family]}. "
            f"Take a LoRA made for {NAMES[base.family]}, or an {NAMES[family]} base."
        )
