"""What a LoRA that training saves says of itself: kohya's ss_* and Stability's modelspec fields.

kohya's are what other programs show and search by (kohya-ss/sd-scripts, train_network.py and
library/sai_model_spec.py); modelspec's are github.com/Stability-AI/ModelSpec, 1.0.1. Its date is
left out, though the specification asks for it, and so is what [card] says: the same training makes
the same bytes whenever it runs.
"""

import json
from collections.abc import Mapping

from merge.lineage import ARCHITECTURES
from pipeline.models.components import Family
from pipeline.recipe import BuildRecipe
from pipeline.recipe.lora import Lora
from pipeline.train.carry import MARK, SHARE
from pipeline.train.plan import RoundTraining

KOHYA_VERSIONS: Mapping[Family, str] = {"sd15": "sd_v1", "sdxl": "sdxl_base_v1-0"}
"""What kohya's files call the families."""
IMPLEMENTATIONS: Mapping[Family, str] = {
    "sd15": "diffusers",
    "sdxl": "https://github.com/Stability-AI/generative-models",
}
"""Whose names a LoRA's layers have, as modelspec says it."""


def lora_metadata(
    recipe: BuildRecipe,
    training: RoundTraining,
    family: Family,
    step: int,
    *,
    prediction_type: str,
    shares: Mapping[str, float],
    carried: bool,
) -> dict[str, str]:
    """Of a LoRA after `step` steps; no clock, no place.

    Args:
        prediction_type: "epsilon" or "v_prediction".
        shares: of the round's learning rate, of the text encoders that learn.
        carried: whether the file takes back a part of the one before.
    """
    lora, train, rate = recipe.lora, recipe.train, training.learning_rate
    # As the file has them.
    times = 2 if training.start.principal else 1
    title, side = f"{recipe.name}-round-{training.round:02d}", recipe.resize.resolution
    said = {
        "modelspec.architecture": f"{ARCHITECTURES['sdxl' if family == 'sdxl' else 'sd15']}/lora",
        "modelspec.encoder_layer": str(recipe.base.clip_skip),
        "modelspec.implementation": IMPLEMENTATIONS[family],
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else "epsilon",
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": title,
        "ss_base_model_version": KOHYA_VERSIONS[family],
        "ss_clip_skip": str(recipe.base.clip_skip),
        "ss_gradient_accumulation_steps": str(train.accumulation),
        "ss_learning_rate": str(rate),
        "ss_lr_scheduler": train.scheduler,
        "ss_network_alpha": str(lora.linear_alpha * times),
        "ss_network_dim": str(lora.rank * times),
        "ss_network_module": "lycoris.kohya" if lora.dora else "networks.lora",
        "ss_num_train_images": str(len(training.pictures)),
        "ss_optimizer": train.optimizer,
        "ss_output_name": title,
        "ss_resolution": f"({side}, {side})",
        "ss_seed": str(training.seed),
        "ss_steps": str(step),
        "ss_unet_lr": str(rate),
        "ss_v2": "False",
        "urushi_round": str(training.round),
    }
    if lora.dropout:
        said["ss_network_dropout"] = str(lora.dropout)
    if lora.max_norm is not None:
        said["ss_scale_weight_norms"] = str(lora.max_norm)
    if arguments := _arguments(lora, times):
        said["ss_network_args"] = json.dumps(arguments)
    if shares:
        encoders = ("te",) if family == "sd15" else ("te1", "te2")
        rates = (rate * shares.get(encoder, 0.0) for encoder in encoders)
        said["ss_text_encoder_lr"] = ", ".join(map(str, rates))
    if carried:
        said[MARK] = f"{SHARE:g}"
    return said


def _arguments(lora: Lora, times: int) -> dict[str, str]:
    """What kohya's network modules are told beside rank and alpha, by their names."""
    told: dict[str, str] = {}
    if lora.conv_rank:
        told |= {
            "conv_dim": str(lora.conv_rank * times),
            "conv_alpha": str(lora.convolution_alpha * times),
        }
    if lora.dora:
        told |= {"algo": "lora", "dora_wd": "True"}
    dropouts = {"rank_dropout": lora.rank_dropout, "module_dropout": lora.module_dropout}
    return told | {key: str(share) for key, share in dropouts.items() if share}
