"""[lora].init: training goes on from a file's delta exactly, and says what does not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import merge
from merge.convert import convert
from pipeline.errors import RequestError
from pipeline.models.load import load_unet
from pipeline.recipe import BuildRecipe
from pipeline.recipe.base import Base
from pipeline.recipe.lora import Lora
from pipeline.train.adapter import NAME, attach, factors, layers, save_lora, trainable
from pipeline.train.denoiser import Denoiser
from pipeline.train.naming import kohya_names
from pipeline.train.plan import RoundTraining, Start
from pipeline.train.run import Run

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]
TAUGHT = Lora(rank=4, alpha=3, conv_rank=2)


@pytest.fixture
def taught(shards: Path, tmp_path: Path) -> Path:
    """A LoRA of ranks 4 and 2, in kohya's layout."""
    network = Denoiser(load_unet(Base(checkpoint=shards / "base"), None))
    attach(network, TAUGHT, seed=5)
    generator = torch.Generator().manual_seed(2)
    for parameter in trainable(network):
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
    save_lora(factors(network), tmp_path / "taught.safetensors", {})
    return tmp_path / "taught.safetensors"


def going_on(plan: TrainMaker, file: Path, **lora: Any) -> tuple[BuildRecipe, RoundTraining]:
    return plan("on", lora=lora, training={"start": Start("gradient", init=file)})


def as_peft(lora: Path, folder: Path, network: Denoiser, alpha: float) -> Path:
    """The same in the folder that PEFT writes of a UNet, with one alpha for layers of all ranks."""
    tensors, spelled, ranks = load_file(lora), {}, {}
    for path, name in kohya_names(network, [path for path, _ in layers(network)]).items():
        down, up = (tensors[f"{name}.lora_{part}.weight"] for part in ("down", "up"))
        module = path.removeprefix("unet.")
        spelled[f"base_model.model.{module}.lora_A.weight"] = down
        # What this file's alpha says beside PEFT's one for all.
        scale = float(tensors[f"{name}.alpha"]) / alpha
        spelled[f"base_model.model.{module}.lora_B.weight"] = up * scale
        ranks[module] = len(down)
    folder.mkdir()
    save_file(spelled, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": 4, "lora_alpha": alpha, "rank_pattern": ranks}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("alpha", [3, 12])
def test_the_round_starts_from_the_files_delta(
    plan: TrainMaker, taught: Path, tmp_path: Path, layout: str, alpha: float
) -> None:
    """Also where [lora] has another scale, in another layout, and with layers beside the file's."""
    file = taught
    if layout == "diffusers":
        file = tmp_path / "respelled.safetensors"
        convert(taught, file, "diffusers", family="sd15")
    if layout == "peft":
        known = Denoiser(load_unet(Base(checkpoint=plan()[0].base.checkpoint), None))
        attach(known, TAUGHT, seed=5)
        file = as_peft(taught, tmp_path / "adapter", known, alpha=6)
    recipe, training = going_on(plan, file, rank=4, alpha=alpha, conv_rank=2)
    run = Run(recipe, training)
    merge.merge(recipe.base.checkpoint, [merge.Addend(taught, 1.0)], tmp_path / "merged")
    merged, plain = load_unet(recipe.base, tmp_path / "merged"), load_unet(recipe.base, None)
    for path, layer in layers(run.network):
        after, before = (
            unet.get_parameter(f"{path.removeprefix('unet.')}.weight") for unet in (merged, plain)
        )
        torch.testing.assert_close(layer.get_delta_weight(NAME), after - before, atol=1e-6, rtol=0)
        assert (after - before).abs().max() > 1e-3
    # Bit for bit where the scales agree.
    if alpha == 3 and layout != "peft":
        before, now = load_file(taught), factors(run.network)
        assert before.keys() == now.keys()
        assert all(before[key].equal(now[key]) for key in before)


def test_layers_that_the_file_has_not_start_fresh(plan: TrainMaker, taught: Path) -> None:
    tensors = load_file(taught)
    some = {key: value for key, value in tensors.items() if "attn2" in key}
    save_lora(some, taught, {})
    run = Run(*going_on(plan, taught, rank=4, alpha=3, conv_rank=2))
    saved = factors(run.network)
    assert all(saved[key].equal(value) for key, value in some.items())
    others = [key for key in saved.keys() - some.keys() if key.endswith("lora_up.weight")]
    assert others and not any(saved[key].any() for key in others)
    assert all(saved[key.replace("lora_up", "lora_down")].any() for key in others)


@pytest.mark.parametrize(
    ("lora", "wrong"),
    [
        ({"rank": 8, "conv_rank": 2}, r"has rank 4 for lora_unet_.*, of 32 x 32, where \[lora\] "
                                      r"has rank 8.*`urushi lora resize`"),
        ({"rank": 4}, r"changes \d+ layers that \[lora\] does not cover, lora_unet_.*conv_rank"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    plan: TrainMaker, taught: Path, lora: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(RequestError, match=wrong):
        Run(*going_on(plan, taught, **lora))


def test_what_is_no_plain_lora_is_refused(plan: TrainMaker, taught: Path) -> None:
    tensors = load_file(taught)
    name = next(key for key in tensors if key.endswith(".alpha")).removesuffix(".alpha")
    out = len(tensors[f"{name}.lora_up.weight"])
    save_lora(tensors | {f"{name}.dora_scale": torch.ones(out, 1)}, taught, {})
    with pytest.raises(RequestError, match=r"\[lora\].init cannot be gone on with: .* a DoRA of"):
        Run(*going_on(plan, taught, rank=4, alpha=3, conv_rank=2))


def test_half_of_pefts_folder_is_told_of_the_other(plan: TrainMaker, tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    factor = torch.zeros(4, 4)
    save_file({f"base_model.model.x.lora_{part}.weight": factor.clone() for part in "AB"}, file)
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 4}')
    with pytest.raises(RequestError, match=rf"\[lora\].init .* Name the folder .* {tmp_path}"):
        Run(*going_on(plan, file, rank=4))
