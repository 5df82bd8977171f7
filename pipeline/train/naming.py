"""What a LoRA file calls the layers of the networks that are trained: kohya's names.

    SD 1.5   lora_unet_down_blocks_1_attentions_0_proj_in      lora_te_text_model_encoder_…
    SDXL     lora_unet_input_blocks_4_1_proj_in                lora_te1_…, lora_te2_…

The only file of this room that imports merge, whose tables of names it reads; no tensors.
"""

from collections.abc import Iterable

from merge.keys import block_of, text_module, translate, unet_modules
from merge.shapes import UNetShape, unet_shape_of_diffusers
from pipeline.train.denoiser import WRAPPED, Denoiser

UNET = "unet."
ENCODERS = "encoders."


def kohya_names(network: Denoiser, paths: Iterable[str]) -> dict[str, str]:
    """Path of a layer in `network` → kohya's name of it: in SDXL's UNet with sgm's blocks."""
    sgm = network.unet.config.addition_embed_type == "text_time"
    shape = _shape(network)
    return {path: _kohya(path, shape if sgm else None) for path in paths}


def _kohya(path: str, shape: UNetShape | None) -> str:
    if path.startswith(ENCODERS):
        _, encoder, module = path.split(".", 2)
        return f"lora_{encoder}_" + text_module(module).replace(".", "_")
    module = path.removeprefix(UNET)
    if shape is not None:
        module = _in_ldm(module, shape) or module
    return "lora_unet_" + module.replace(".", "_")


def block_names(network: Denoiser, paths: Iterable[str]) -> dict[str, str]:
    """Path of a layer → its block as block weights count them: IN00, M00, OUT00, …; BASE for the
    text encoders."""
    shape = _shape(network)
    names = {}
    for path in paths:
        inside = None if path.startswith(ENCODERS) else _in_ldm(path.removeprefix(UNET), shape)
        names[path] = "BASE" if inside is None else block_of(inside, shape)
    return names


def _in_ldm(module: str, shape: UNetShape) -> str | None:
    found = translate(f"{module}.weight", unet_modules(shape))
    return None if found is None else found.removesuffix(".weight")


def _shape(network: Denoiser) -> UNetShape:
    return unet_shape_of_diffusers(key.replace(WRAPPED, "") for key in network.unet.state_dict())
