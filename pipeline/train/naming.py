"""What a LoRA file calls the layers of the networks that are trained: kohya's names.

    SD 1.5   lora_unet_down_blocks_1_attentions_0_proj_in      lora_te_text_model_encoder_…
    SDXL     lora_unet_input_blocks_4_1_proj_in                lora_te1_…, lora_te2_…

The only file of this room that imports merge, whose tables of names it reads; no tensors.
"""

from collections.abc import Iterable

from diffusers import UNet2DConditionModel

from merge.keys import translate, unet_modules
from merge.shapes import unet_shape_of_diffusers

UNET = "lora_unet_"
WRAPPED = ".base_layer"
"""What peft puts between a layer's name and its own weights'."""


def unet_names(unet: UNet2DConditionModel, modules: Iterable[str]) -> dict[str, str]:
    """diffusers module → kohya's name of it: SDXL's in sgm's block names, SD 1.5's in its own."""
    if unet.config.addition_embed_type != "text_time":
        return {module: _underscored(module) for module in modules}
    keys = [key.replace(WRAPPED, "") for key in unet.state_dict()]
    blocks = unet_modules(unet_shape_of_diffusers(keys))
    names = {}
    for module in modules:
        found = translate(f"{module}.weight", blocks)
        names[module] = _underscored(module if found is None else found.removesuffix(".weight"))
    return names


def _underscored(module: str) -> str:
    return UNET + module.replace(".", "_")
