"""What a saved LoRA says of itself, as other programs read it."""

import json
from collections.abc import Callable
from typing import Any

from pipeline.recipe import BuildRecipe
from pipeline.train.metadata import lora_metadata
from pipeline.train.plan import RoundTraining

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]


def said(plan: TrainMaker, family: Any = "sd15", predicts: str = "epsilon", **lora: Any) -> Any:
    recipe, training = plan("told", lora=lora)
    return lora_metadata(
        recipe, training, family, 8, prediction_type=predicts, shares={}, carried=False
    )


def test_modelspec_names_model_and_prediction_and_no_day(plan: TrainMaker) -> None:
    """Values of github.com/Stability-AI/ModelSpec, as kohya's scripts write them for a LoRA."""
    first = said(plan)
    assert first["modelspec.sai_model_spec"] == "1.0.1"
    assert first["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert first["modelspec.implementation"] == "diffusers"
    assert first["modelspec.prediction_type"] == "epsilon"
    assert first["modelspec.title"] == first["ss_output_name"] == "coat-round-01"
    assert first["modelspec.resolution"] == "768x768" and first["ss_resolution"] == "(768, 768)"
    assert not [key for key in first if "date" in key or "time" in key]
    xl = said(plan, "sdxl", "v_prediction")
    assert xl["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert xl["modelspec.prediction_type"] == "v"
    assert xl["ss_base_model_version"] == "sdxl_base_v1-0"


def test_kohyas_fields_say_what_the_network_was(plan: TrainMaker) -> None:
    plain = said(plan, rank=16, alpha=2, rslora=True, dropout=0.1, max_norm=1.0)
    assert (plain["ss_network_dim"], plain["ss_network_alpha"]) == ("16", "8.0")
    assert plain["ss_network_module"] == "networks.lora" and "ss_network_args" not in plain
    assert (plain["ss_network_dropout"], plain["ss_scale_weight_norms"]) == ("0.1", "1.0")
    several = said(plan, conv_rank=2, conv_alpha=1, rank_dropout=0.2)
    assert json.loads(several["ss_network_args"]) == {
        "conv_dim": "2",
        "conv_alpha": "1.0",
        "rank_dropout": "0.2",
    }
    dora = said(plan, dora=True)
    assert dora["ss_network_module"] == "lycoris.kohya"
    assert json.loads(dora["ss_network_args"])["dora_wd"] == "True"
