"""What a LoRA file calls the layers of the networks that are trained: kohya's names.

    SD 1.5   lora_unet_down_blocks_1_attentions_0_proj_in      lora_te_text_model_encoder_…
    SDXL     lora_unet_input_blocks_4_1_proj_in                lora_te1_…, lora_te2_…

Reads merge's tables of names; no tensors.
"""

from collections.abc import Iterable

from merge.keys import block_of, text_module, translate, unet_modules
from merge.shapes import UNetShape, unet_shape_of_diffusers
from pipeline.train.denoiser import ENCODERS, WRAPPED, Denoiser

UNET = "unet."


def kohya_names(network: Denoiser, paths: Iterable[str]) -> dict[str, str]:
    """Path of a layer in `network` → kohya's name of it: in SDXL's UNet with sgm's blocks."""
    shape = _shape(network) if is_sdxl(network) else None
    return {path: _kohya(path, shape) for path in paths}


def is_sdxl(network: Denoiser) -> bool:
    """Whether the UNet is SDXL's, not SD 1.5's."""
    return bool(network.unet.config.addition_embed_type == "text_time")


def blocks_of(network: Denoiser, paths: Iterable[str]) -> dict[str, str]:
    """Path of a layer of the UNet in `network` → its block: IN00-IN11, M00 or OUT00-OUT11."""
    shape = _shape(network)
    modules = {path: path.removeprefix(UNET) for path in paths}
    return {path: block_of(_in_ldm(m, shape) or m, shape) for path, m in modules.items()}


def _kohya(path: str, shape: UNetShape | None) -> str:
    if path.startswith(ENCODERS):
        _, encoder, module = path.split(".", 2)
        return f"lora_{encoder}_" + text_module(module).replace(".", "_")
    module = path.removeprefix(UNET)
    if shape is not None:
        module = _in_ldm(module, shape) or module
    return "lora_unet_" + module.replace(".", "_")


def _in_ldm(module: str, shape: UNetShape) -> str | None:
    found = translate(f"{module}.weight", unet_modules(shape))
    return None if found is None else found.removesuffix(".weight")


def _shape(network: Denoiser) -> UNetShape:
    return unet_shape_of_diffusers(key.replace(WRAPPED, "") for key in network.unet.state_dict())
