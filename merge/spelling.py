"""What LoRA files call a layer: from `Layer.name` to every spelling in use, and back.

    layer        unet.down_blocks.1.attentions.0.proj_in    te1.text_model.encoder.layers.0.mlp.fc1
    kohya        lora_unet_down_blocks_1_attentions_0_proj_in    lora_te_text_model_encoder_…
    kohya, SDXL  lora_unet_input_blocks_4_1_proj_in              lora_te1_text_model_encoder_…
    diffusers    unet.down_blocks.1.attentions.0.proj_in         text_encoder.text_model.encoder.…
    PEFT         base_model.model.down_blocks.1.attentions.0.proj_in
    ComfyUI      diffusion_model.input_blocks.4.1.proj_in        text_encoders.clip_l.transformer.…

A base's own spellings come from its own keys (merge/layout.py). `dotted` and `kohya_names` serve
where there is no base: block names of sgm are then read as standard SDXL's. Strings only.
"""

import re
from collections.abc import Mapping
from functools import cache

from merge.keys import TEXT_MODEL, block_of, inverse, translate, unet_modules
from merge.layers import Family
from merge.shapes import Level, UNetShape

SD15_UNET = UNetShape(
    down=(Level(2, True, True),) * 3 + (Level(2, False, False),),
    up=(Level(3, False, True), Level(3, True, True), Level(3, True, True), Level(3, True, False)),
)
SDXL_UNET = UNetShape(
    down=(Level(2, False, True), Level(2, True, True), Level(2, True, False)),
    up=(Level(3, True, True), Level(3, True, True), Level(3, False, False)),
)

KOHYA_UNET = "lora_unet_"
KOHYA_TEXT: Mapping[str, Mapping[Family, tuple[str, ...]]] = {
    # diffusers' own exporter names the single encoder of SD 1.5 as if it were the first of two.
    "te1": {"sd15": ("lora_te_", "lora_te1_"), "sdxl": ("lora_te1_",)},
    "te2": {"sd15": (), "sdxl": ("lora_te2_",)},
}
LYCORIS_UNET = "lycoris_"
"""LyCORIS as a library of its own, without kohya's trainer; the UNet in diffusers' names."""
PEFT = "base_model.model."
DIFFUSERS_TEXT = {
    "te1": ("text_encoder.", "text_encoders.clip_l.transformer."),
    "te2": ("text_encoder_2.", "text_encoders.clip_g.transformer."),
}
"""The second is ComfyUI's."""
COMFY_UNET = "diffusion_model."

WORDS = (
    # sgm's UNet
    "input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers",
    "skip_connection", "op", "time_embed", "label_emb", "out",
    # diffusers' UNet
    "down_blocks", "mid_block", "up_blocks", "resnets", "attentions", "downsamplers", "upsamplers",
    "conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut", "conv_norm_out",
    "time_emb_proj", "time_embedding", "add_embedding", "linear_1", "linear_2",
    # inside an attention, the same in both
    "norm", "norm1", "norm2", "norm3", "proj_in", "proj_out", "transformer_blocks",
    "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net", "proj",
    # CLIP
    "text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
    "mlp", "fc1", "fc2", "layer_norm1", "layer_norm2", "final_layer_norm", "text_projection",
)  # fmt: skip
"""Every word that a module's path is made of, which says where kohya's underscores were dots."""

_WORD = re.compile(rf"({'|'.join(sorted(WORDS, key=len, reverse=True))}|\d+)(?:_(?=.)|$)")
CLIP = (TEXT_MODEL, "encoder.layers.", "final_layer_norm")
_SGM = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")


def spellings(name: str, ldm: str, family: Family) -> tuple[str, ...]:
    """Every name that a LoRA file may give to a layer, kohya's usual one first.

    name: `Layer.name`. ldm: the module's ldm name without prefix, for the UNet's layers.
    """
    network, _, module = name.partition(".")
    if network == "unet":
        kohya = [KOHYA_UNET + written.replace(".", "_") for written in (module, ldm)]
        return (
            *(kohya if family == "sd15" else reversed(kohya)),
            LYCORIS_UNET + module.replace(".", "_"),
            f"unet.{module}",
            PEFT + module,
            module,
            COMFY_UNET + ldm,
        )
    # transformers from 5.6 on says `encoder.layers…`, without `text_model.`
    modules = dict.fromkeys((module, module.removeprefix(TEXT_MODEL)))
    found = [
        prefix + written.replace(".", "_")
        for written in modules
        for prefix in KOHYA_TEXT[network][family]
    ]
    found += [prefix + written for written in modules for prefix in DIFFUSERS_TEXT[network]]
    if family == "sd15":
        # SDXL has two text encoders, of which PEFT does not say which.
        found += [PEFT + written for written in modules]
    return tuple(found)


def kohya_names(name: str, family: Family) -> tuple[str, ...]:
    """kohya's names of the layer `name` in a model of standard size, the usual one first.

    SDXL's UNet layers are written in sgm's names, SD 1.5's in diffusers' names.
    """
    module = name.removeprefix("unet.")
    found = translate(f"{module}.weight", _standard(family)) if module != name else ""
    ldm = module if found is None else found.removesuffix(".weight")
    return tuple(dict.fromkeys(n for n in spellings(name, ldm, family) if n.startswith(("lora_",))))


def standard_block(name: str, family: Family) -> str | None:
    """The block of the layer `name` in a model of standard size; None where that has no such layer.

    BASE, IN00-IN11, M00 or OUT00-OUT11, as `Layer.block`.
    """
    network, _, module = name.partition(".")
    if network != "unet":
        return "BASE"
    found = translate(f"{module}.weight", _standard(family))
    shape = SD15_UNET if family == "sd15" else SDXL_UNET
    return None if found is None else block_of(found, shape)


def dotted(name: str) -> str | None:
    """`Layer.name` of any spelling: unet.…, te1.text_model.… or te2.…; None if it is none.

    sgm's block numbers are read as those of SDXL with its standard three levels.
    """
    for prefix, network in _prefixes().items():
        if name.startswith(prefix):
            module = name.removeprefix(prefix)
            return _layer(network, module if "." in prefix else _dots(module))
    if name.startswith(("down_blocks.", "mid_block.", "up_blocks.")):
        return _layer("unet", name)
    return None


def _layer(network: str, module: str | None) -> str | None:
    if module is None or not all(word in WORDS or word.isdigit() for word in module.split(".")):
        return None
    if network == "unet":
        if module.startswith(_SGM):
            found = translate(f"{module}.weight", _standard_inverse())
            return None if found is None else f"unet.{found.removesuffix('.weight')}"
        if not module.startswith(CLIP):
            return f"unet.{module}"
        # PEFT's prefix, before a text encoder's module.
        network = "te1"
    if not module.startswith((TEXT_MODEL, "text_projection")):
        module = TEXT_MODEL + module
    return f"{network}.{module}"


def _dots(underscored: str) -> str | None:
    """A module's path with dots, from kohya's underscores; None where a word is not known."""
    words: list[str] = []
    position = 0
    while position < len(underscored):
        match = _WORD.match(underscored, position)
        if match is None:
            return None
        words.append(match[1])
        position = match.end()
    return ".".join(words)


@cache
def _prefixes() -> dict[str, str]:
    """Prefix → network, the longer before the shorter that it begins with."""
    found = {KOHYA_UNET: "unet", LYCORIS_UNET: "unet", "unet.": "unet", COMFY_UNET: "unet"}
    found[PEFT] = "unet"
    for network, families in KOHYA_TEXT.items():
        found |= {prefix: network for names in families.values() for prefix in names}
    for network, names in DIFFUSERS_TEXT.items():
        found |= dict.fromkeys(names, network)
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))


@cache
def _standard(family: Family) -> dict[str, str]:
    return unet_modules(SD15_UNET if family == "sd15" else SDXL_UNET)


@cache
def _standard_inverse() -> dict[str, str]:
    return inverse(_standard("sdxl"))
