"""The names of one layer inside a checkpoint: diffusers module and ldm key, both ways.

    diffusers   down_blocks.1.resnets.0.conv1                        (and transformers' CLIP)
    ldm         model.diffusion_model.input_blocks.4.0.in_layers.2   (single files, SDXL's too)

The tables are complete for SD 1.5 and SDXL; what repeats (levels, blocks) is unrolled from a shape
that merge/shapes.py reads from a checkpoint's own keys. Strings only, no tensors. What LoRA files
call a layer is in merge/spelling.py.
"""

from collections.abc import Mapping

from merge.shapes import UNetShape, VaeShape

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."
SDXL_TEXT = "conditioner.embedders.0.transformer."
SDXL_TEXT_2 = "conditioner.embedders.1.model."
"""In OpenCLIP's layout: see merge/openclip.py."""
EMA = "model_ema."
TEXT_MODEL = "text_model."
"""Some writers leave it out: old single files, and transformers from 5.6 on."""
TEXT_HEADS = ("text_projection.", "logit_scale")
"""What a text encoder has beside its `text_model.`."""

UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ENDS = {
    "conv_in": "conv_in",
    "conv_norm_out": "norm_out",
    "conv_out": "conv_out",
}
VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
"""Linear in diffusers, 1x1 convolutions in ldm."""


def unet_modules(shape: UNetShape) -> dict[str, str]:
    """diffusers module → ldm module (no prefix). Attentions are one pair: inside, names agree."""
    modules = dict(UNET_ENDS)
    number = 0
    for i, level in enumerate(shape.down):
        for j in range(level.resnets):
            number += 1
            modules |= _resnet(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{number}.0")
            if level.attention:
                modules[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{number}.1"
        if level.sampler:
            number += 1
            modules[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
    modules |= _resnet("mid_block.resnets.0", "middle_block.0")
    modules["mid_block.attentions.0"] = "middle_block.1"
    modules |= _resnet("mid_block.resnets.1", "middle_block.2")
    number = -1
    for i, level in enumerate(shape.up):
        for j in range(level.resnets):
            number += 1
            modules |= _resnet(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{number}.0")
            if level.attention:
                modules[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{number}.1"
        if level.sampler:
            # It stands behind whatever the level's last block holds: resnet, perhaps attention.
            place = 2 if level.attention else 1
            modules[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{number}.{place}.conv"
    return modules


def vae_modules(shape: VaeShape) -> dict[str, str]:
    """diffusers module → ldm module (no prefix). ldm counts the decoder's levels from its end."""
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        modules |= {f"{half}.{ours}": f"{half}.{ldm}" for ours, ldm in VAE_ENDS.items()}
        for j in (0, 1):
            modules |= _named(
                f"{half}.mid_block.resnets.{j}", f"{half}.mid.block_{j + 1}", VAE_RESNET
            )
        modules |= _named(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", VAE_ATTENTION)
    for i, level in enumerate(shape.encoder):
        ours, ldm = f"encoder.down_blocks.{i}", f"encoder.down.{i}"
        for j in range(level.resnets):
            modules |= _named(f"{ours}.resnets.{j}", f"{ldm}.block.{j}", VAE_RESNET)
        modules[f"{ours}.downsamplers.0.conv"] = f"{ldm}.downsample.conv"
    for i, level in enumerate(shape.decoder):
        ours, ldm = f"decoder.up_blocks.{i}", f"decoder.up.{len(shape.decoder) - 1 - i}"
        for j in range(level.resnets):
            modules |= _named(f"{ours}.resnets.{j}", f"{ldm}.block.{j}", VAE_RESNET)
        modules[f"{ours}.upsamplers.0.conv"] = f"{ldm}.upsample.conv"
    return modules


def _named(ours: str, ldm: str, inner: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}.{a}": f"{ldm}.{b}" for a, b in inner.items()}


def _resnet(ours: str, ldm: str) -> dict[str, str]:
    return _named(ours, ldm, UNET_RESNET)


def translate(key: str, modules: Mapping[str, str]) -> str | None:
    """`key` with its longest leading module replaced; None where no module leads it."""
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        found = modules.get(".".join(parts[:length]))
        if found is not None:
            return ".".join([found, *parts[length:]])
    return None


def inverse(modules: Mapping[str, str]) -> dict[str, str]:
    """ldm module → diffusers module."""
    return {ldm: ours for ours, ldm in modules.items()}


def text_module(key: str) -> str:
    """A CLIP text encoder's key with `text_model.` in front, as kohya and single files have it."""
    return key if key.startswith((TEXT_MODEL, *TEXT_HEADS)) else TEXT_MODEL + key


def ema_key(key: str) -> str:
    """Where a single file keeps the moving average of a UNet key: its name without the dots."""
    return EMA + key.removeprefix("model.").replace(".", "")


def block_of(key: str, shape: UNetShape) -> str:
    """The block of an ldm UNet key (without `model.diffusion_model.`), as block weights count them.

    IN00-INnn, M00 or OUT00-OUTnn: twelve of each side in SD 1.5, nine in SDXL. time_embed and
    label_emb are IN00, `out` is the last OUT block.
    """
    side, _, rest = key.partition(".")
    if side == "middle_block":
        return "M00"
    if side == "input_blocks":
        return f"IN{int(rest.partition('.')[0]):02}"
    if side == "output_blocks":
        return f"OUT{int(rest.partition('.')[0]):02}"
    return f"OUT{sum(level.resnets for level in shape.up) - 1:02}" if side == "out" else "IN00"
