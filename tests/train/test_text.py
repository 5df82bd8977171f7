"""Text encoders that learn: gradients reach them, their LoRA is what others read, and merges."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file

import merge
from pipeline.errors import RequestError
from pipeline.models.load import load_text, load_unet
from pipeline.models.text import TextStack
from pipeline.progress import Silent
from pipeline.recipe import BuildRecipe
from pipeline.recipe.base import Base
from pipeline.recipe.lora import Lora
from pipeline.recipe.train import Train
from pipeline.train.adapter import (
    attach,
    factors,
    layers,
    save_lora,
    set_strength,
    trainable,
)
from pipeline.train.carry import Leading
from pipeline.train.conditioning import Conditioning, Spoken, predict
from pipeline.train.denoiser import Denoiser
from pipeline.train.metadata import lora_metadata
from pipeline.train.naming import kohya_names
from pipeline.train.network import encoder_shares, load_base, within
from pipeline.train.plan import RoundTraining
from pipeline.train.product import LORA
from pipeline.train.round import train_round
from pipeline.train.run import Run
from pipeline.train.targets import targets

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]
CAPTIONS = ["red circle", "two blue square, masterpiece"]
PIPELINES: dict[str, type[DiffusionPipeline]] = {
    "sd15": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
}


@pytest.fixture(scope="module")
def bases(shards: Path, sdxl: Base) -> dict[str, Base]:
    """Tiny bases as diffusers folders, by family."""
    return {"sd15": Base(checkpoint=shards / "base"), "sdxl": sdxl}


def learning(base: Base, **train: Any) -> tuple[Denoiser, TextStack]:
    """A network with a LoRA whose every factor was filled with random values."""
    network = load_base(base, None, (), "float32", "no", live=True)
    assert network.text is not None
    shares = encoder_shares(Train(**{"text_encoder_rate": 0.5, **train}), network.text)
    network = Denoiser(network.unet, network.text, shares)
    attach(network, Lora(rank=4, alpha=3), seed=3)
    generator = torch.Generator().manual_seed(5)
    for parameter in trainable(network):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    assert network.text is not None
    return network, network.text


@pytest.mark.parametrize("family", PIPELINES)
def test_diffusers_reads_the_encoders_lora_as_it_was_in_memory(
    bases: dict[str, Base], tmp_path: Path, family: str
) -> None:
    network, text = learning(bases[family])
    save_lora(factors(network), tmp_path / "lora.safetensors", {})
    pipeline = PIPELINES[family].from_pretrained(bases[family].checkpoint)
    before = load_text(bases[family]).encode(CAPTIONS).hidden
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    found = pipeline.encode_prompt(
        CAPTIONS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    wanted = text.encode(CAPTIONS)
    torch.testing.assert_close(found[0], wanted.hidden, atol=1e-4, rtol=0)
    assert (wanted.hidden - before).abs().max() > 0.01
    if wanted.pooled is not None:
        torch.testing.assert_close(found[2], wanted.pooled, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", PIPELINES)
def test_merged_the_encoders_say_what_they_said_in_memory(
    bases: dict[str, Base], tmp_path: Path, family: str
) -> None:
    network, text = learning(bases[family])
    save_lora(factors(network), tmp_path / "lora.safetensors", {})
    out = tmp_path / "merged"
    report = merge.merge(
        bases[family].checkpoint, [merge.Addend(tmp_path / "lora.safetensors", 1.0)], out
    )
    assert len(report.matched) == sum(1 for _ in layers(network))
    found = load_text(bases[family], out).encode(CAPTIONS)
    wanted = text.encode(CAPTIONS)
    torch.testing.assert_close(found.hidden, wanted.hidden, atol=1e-5, rtol=1e-5)
    if wanted.pooled is not None:
        torch.testing.assert_close(found.pooled, wanted.pooled, atol=1e-5, rtol=1e-5)


def test_a_strength_apart_reaches_each_network(bases: dict[str, Base], tmp_path: Path) -> None:
    network, text = learning(bases["sd15"])
    save_lora(factors(network), tmp_path / "lora.safetensors", {})
    set_strength(network, (0.3, 0.8))
    out = tmp_path / "merged"
    addend = merge.Addend(tmp_path / "lora.safetensors", merge.parse_strength("unet=0.3,te=0.8"))
    merge.merge(bases["sd15"].checkpoint, [addend], out)
    told, at = load_text(bases["sd15"], out).encode(CAPTIONS), torch.tensor([10, 700])
    torch.testing.assert_close(text.encode(CAPTIONS).hidden, told.hidden, atol=1e-5, rtol=1e-5)
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        said = network(noisy, at, Conditioning(told.hidden, None))
        wanted = predict(load_unet(bases["sd15"], out), noisy, at, Conditioning(told.hidden, None))
    torch.testing.assert_close(said, wanted, atol=1e-5, rtol=1e-4)


def test_files_name_the_layers_as_kohya_does(bases: dict[str, Base]) -> None:
    def names(family: str, **train: Any) -> set[str]:
        network, _ = learning(bases[family], **train)
        found = (key.partition(".")[0] for key in factors(network))
        return {name for name in found if name.startswith("lora_te")}

    places = [*(f"self_attn_{p}_proj" for p in ("q", "k", "v", "out")), "mlp_fc1", "mlp_fc2"]
    first = {f"text_model_encoder_layers_0_{place}" for place in places}
    both = first | {f"text_model_encoder_layers_1_{place}" for place in places}
    assert names("sd15") == {f"lora_te_{name}" for name in both}
    # SDXL reads the layer before the last of the first encoder: nothing depends on its last one.
    one, two = {f"lora_te1_{name}" for name in first}, {f"lora_te2_{name}" for name in both}
    assert names("sdxl") == one | two
    assert names("sdxl", text_encoder_rate=(0.5, 0.0)) == one
    assert names("sdxl", text_encoder_rate=(0.0, 0.1)) == two


@pytest.mark.parametrize("family", PIPELINES)
def test_every_factor_of_an_encoder_gets_a_gradient(bases: dict[str, Base], family: str) -> None:
    base = bases[family]
    read = base.model_copy(update={"clip_skip": 2, "tokens": 150}) if family == "sd15" else base
    network, text = learning(read)
    network.train()
    told = Spoken(text.tokens(CAPTIONS), torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2))
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    network(noisy, torch.tensor([10, 700]), told).pow(2).mean().backward()
    factors_of = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert any(name.startswith("encoders.") for name in factors_of)
    for name, parameter in factors_of.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    # Checkpointing computes the same ones.
    kept = {name: parameter.grad for name, parameter in factors_of.items()}
    network.zero_grad()
    network.enable_gradient_checkpointing()
    network(noisy, torch.tensor([10, 700]), told).pow(2).mean().backward()
    for name, parameter in factors_of.items():
        torch.testing.assert_close(parameter.grad, kept[name], atol=1e-7, rtol=1e-4)


def test_encoders_alone_lower_the_loss_that_they_are_trained_on(plan: TrainMaker) -> None:
    """The UNet's factors are held still: what is learned is learned by the encoder."""
    asked = {"text_encoder_rate": 1.0, "batch_size": 10, "caption_dropout": 0.0, "warmup": 0.0}
    run = Run(*plan(steps=60, learning_rate=1e-2, train={**asked, "scheduler": "constant"}))
    unet = {n: p.detach().clone() for n, p in run.parameters.items() if n.startswith("unet.")}
    for name in unet:
        run.parameters[name].requires_grad_(False)
    inputs = run.feed.at(0)

    def loss() -> float:
        with torch.no_grad():
            return float(run.sample_losses(inputs).mean())

    before = loss()
    for _ in range(run.steps):
        run.advance()
    assert loss() < 0.98 * before
    for name, value in unet.items():
        assert run.parameters[name].equal(value)


def test_rates_apart_move_the_encoders_by_their_share(plan: TrainMaker) -> None:
    recipe, training = plan(train={"text_encoder_rate": 0.1, "scheduler": "constant"})
    run = Run(recipe, training)
    optimizer: Any = run.learner.optimizer
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, pytest.approx(1e-4)]
    first = {name: p.detach().clone() for name, p in run.parameters.items()}
    run.advance()
    # AdamW's first step is its rate, for whatever gradient.
    ups = {n: (p - first[n]).abs().max().item() for n, p in run.parameters.items() if "_B" in n}
    for name, moved in ups.items():
        rate = 1e-4 if name.startswith("encoders.") else 1e-3
        assert moved == pytest.approx(rate, rel=0.02), name


def test_two_rates_for_one_encoder_are_refused(plan: TrainMaker) -> None:
    with pytest.raises(RequestError, match=r"two numbers for SDXL's two text encoders"):
        Run(*plan(train={"text_encoder_rate": (0.5, 0.1)}))


@pytest.mark.parametrize("name", ["prodigy", "dadaptadam"])
def test_an_optimizer_that_finds_its_rate_has_one_for_both(plan: TrainMaker, name: str) -> None:
    asked = {"optimizer": name, "trackers": ()}
    with pytest.raises(RequestError, match=r"rates apart \(1, 0.5\)"):
        Run(*plan(learning_rate=1.0, train={**asked, "text_encoder_rate": 0.5}))
    together = Run(*plan(learning_rate=1.0, train={**asked, "text_encoder_rate": 1.0}))
    together.advance()


def test_without_learning_encoders_none_is_loaded(plan: TrainMaker) -> None:
    assert Run(*plan()).network.text is None


def test_a_trained_file_says_its_rates(plan: TrainMaker) -> None:
    recipe, training = plan(steps=2, train={"text_encoder_rate": 0.5, "trackers": ()})
    train_round(recipe, training, Silent())
    path = training.folder / LORA
    assert any(key.startswith("lora_te_") for key in load_file(path))
    with safe_open(path, "pt") as file:
        said = file.metadata()
    assert (said["ss_unet_lr"], said["ss_text_encoder_lr"]) == ("0.001", "0.0005")
    said = lora_metadata(
        recipe, training, "sdxl", 2, prediction_type="epsilon", shares={"te2": 0.5}, carried=False
    )
    assert said["ss_text_encoder_lr"] == "0.0, 0.0005"


def test_a_round_without_the_encoders_carries_nothing_of_them(plan: TrainMaker) -> None:
    recipe, _ = plan()
    network = Denoiser(load_unet(recipe.base))
    covered = targets(network, recipe.lora)
    name = kohya_names(network, [covered[0].name])[covered[0].name]
    part = Leading(torch.ones(2, 3), torch.ones(4, 2))
    carried = {name: part, "lora_te_text_model_encoder_layers_0_mlp_fc1": part}
    assert within(carried, network, covered) == {name: part}


@pytest.mark.parametrize("storage", ["fp8", "int8", "nf4"])
def test_encoders_learn_over_a_base_of_few_bits(plan: TrainMaker, storage: str) -> None:
    """Their frozen weights lie in the same storage, and their gradients, which a step of plain SGD
    writes into the LoRA's ups, are those over the full weights."""
    learnt = {}
    for kept in ("float32", storage):
        sgd = {"optimizer": "torch.optim.SGD", "warmup": 0, "scheduler": "constant"}
        train = {**sgd, "text_encoder_rate": 0.5, "storage": kept}
        recipe, training = plan(kept, steps=1, train=train)
        train_round(recipe, training, Silent())
        tensors = load_file(training.folder / LORA)
        ups = [v for k, v in sorted(tensors.items()) if "lora_te" in k and "lora_up" in k]
        assert ups and all(up.any() for up in ups)
        learnt[kept] = torch.cat([up.flatten() for up in ups])
    cosine = torch.nn.functional.cosine_similarity(learnt["float32"], learnt[storage], dim=0)
    assert (0.8 if storage == "nf4" else 0.98) < cosine < 1
