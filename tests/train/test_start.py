"""How rounds start: the function stays, what is taken over is exact, and a kill changes nothing."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import merge
from pipeline.models.load import load_unet
from pipeline.progress import Silent
from pipeline.recipe import BuildRecipe
from pipeline.train.adapter import NAME, named
from pipeline.train.carry import carried_over
from pipeline.train.network import load_network
from pipeline.train.plan import RoundTraining, Start
from pipeline.train.product import LORA, write_product
from pipeline.train.round import train_round
from pipeline.train.run import Run
from pipeline.train.start import KAIMING

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]
Said = Callable[[Any], Tensor]
RANKS = {"rank": 4, "alpha": 3, "conv_rank": 2}
FAST = {"learning_rate": 2e-2, "lora": RANKS}
"""Rates at which a few steps change a lot."""


def laid(recipe: BuildRecipe, chain: list[tuple[Path, float]], out: Path) -> Path:
    """The chain's checkpoint, by merge's own route from the origin."""
    addends = [merge.Addend(path, strength) for path, strength in chain]
    merge.merge(recipe.base.checkpoint, addends, out)
    return out


def after(chain: list[tuple[Path, float]], policy: str, checkpoint: Path) -> dict[str, Any]:
    loras, strengths = zip(*chain, strict=True)
    start = Start(policy, loras, strengths)  # type: ignore[arg-type]
    return {"training": {"start": start, "checkpoint": checkpoint}}


@pytest.fixture
def two(plan: TrainMaker, tmp_path: Path) -> list[tuple[Path, float]]:
    """A round from the gradient and a carried one, merged at strengths below 1."""
    recipe, first = plan("first", **FAST, training={"start": Start("gradient")})
    train_round(recipe, first, Silent())
    chain = [(first.folder / LORA, 0.7)]
    merged = laid(recipe, chain, tmp_path / "one")
    recipe, second = plan("second", **FAST, **after(chain, "carried", merged))
    train_round(recipe, second, Silent())
    return [*chain, (second.folder / LORA, 0.6)]


def test_a_carried_start_leaves_the_function(
    said: Said, plan: TrainMaker, two: list[tuple[Path, float]], tmp_path: Path
) -> None:
    """Weights less what is carried, and the LoRA that holds it: the checkpoint before, by merge."""
    for rounds in (1, 2):
        chain = two[:rounds]
        recipe, training = plan("next", **FAST)
        merged = laid(recipe, chain, tmp_path / f"merged-{rounds}")
        training = replace(training, **after(chain, "carried", merged)["training"])
        before = said(load_unet(recipe.base, merged))
        run = Run(recipe, training)
        torch.testing.assert_close(said(run.network.unet), before, atol=2e-5, rtol=1e-4)
        # Not by doing nothing: half of each layer's rank is there, out of the weights.
        assert {len(kept.down) for kept in run.carried.values()} == {2, 1}
        with torch.no_grad():
            for _, layer in named(run.network):
                layer.set_scale(NAME, 0.0)
        assert (said(run.network.unet) - before).abs().max() > 1e-3


def test_the_saved_delta_is_what_training_saw(
    said: Said, plan: TrainMaker, two: list[tuple[Path, float]], tmp_path: Path
) -> None:
    """One file, merged at 1 by merge's route, is the network at the end of a carried round."""
    recipe, training = plan("seen", **FAST)
    merged = laid(recipe, two, tmp_path / "merged")
    training = replace(training, **after(two, "carried", merged)["training"])
    run = Run(recipe, training)
    for _ in range(3):
        run.advance()
    end, fresh = said(run.network.unet), run.carried
    assert (end - said(load_unet(recipe.base, merged))).abs().max() > 1e-3
    run.look()
    write_product(run)
    whole = laid(recipe, [*two, (training.folder / LORA, 1.0)], tmp_path / "whole")
    torch.testing.assert_close(said(load_unet(recipe.base, whole)), end, atol=3e-5, rtol=1e-4)
    nothing = laid(recipe, [*two, (training.folder / LORA, 0.0)], tmp_path / "nothing")
    for file in nothing.rglob("*.safetensors"):
        before = load_file(merged / file.relative_to(nothing))
        assert all(before[key].equal(tensor) for key, tensor in load_file(file).items())
    # The trained factors stand first, bit for bit.
    saved = load_file(training.folder / LORA)
    for name, layer in named(run.network):
        own = layer.lora_A[NAME].weight
        rows = saved[f"{name}.lora_down.weight"]
        assert rows[: len(own)].equal(own) and len(rows) == len(own) + len(fresh[name].down)


def test_what_is_carried_twice_is_what_was_trainable(two: list[tuple[Path, float]]) -> None:
    """strength x LoRA + (1 - strength) x what it was given, from whole matrices."""
    once, twice = carried_over(two[:1]), carried_over(two)
    saved = load_file(two[1][0])
    for name, kept in twice.items():
        down, up = saved[f"{name}.lora_down.weight"], saved[f"{name}.lora_up.weight"]
        given, scale = len(once[name].down), float(saved[f"{name}.alpha"]) / len(down)
        rank = len(down) - given
        own = scale * up[:, :rank].flatten(1) @ down[:rank].flatten(1)
        whole = 0.6 * own + 0.4 * once[name].up @ once[name].down
        left, values, right = torch.linalg.svd(whole.double(), full_matrices=False)
        count = len(kept.down)
        best = left[:, :count] * values[:count] @ right[:count]
        torch.testing.assert_close((kept.up @ kept.down).double(), best, atol=1e-6, rtol=1e-3)


def test_a_kept_start_has_the_last_rounds_down_and_no_up(
    plan: TrainMaker, two: list[tuple[Path, float]], tmp_path: Path
) -> None:
    recipe, training = plan("kept", **FAST)
    merged = laid(recipe, two[:1], tmp_path / "merged")
    training = replace(training, **after(two[:1], "kept", merged)["training"])
    network, _ = load_network(recipe, training, "no", {})
    last = load_file(two[0][0])
    for name, layer in named(network):
        assert layer.lora_A[NAME].weight.equal(last[f"{name}.lora_down.weight"])
        assert not layer.lora_B[NAME].weight.any()


def test_a_gradient_start_points_along_the_gradient(plan: TrainMaker) -> None:
    """Against the gradient of a layer's own weight: the rows hold most of what rank 4 can hold."""
    recipe, training = plan("aimed", lora=RANKS, training={"start": Start("gradient")})
    run = Run(recipe, training)
    shares = []
    for _, layer in named(run.network):
        weight = layer.base_layer.weight.requires_grad_(True)
        run._gradients()
        gradient = weight.grad.flatten(1)
        weight.requires_grad_(False).grad = None
        rows = layer.lora_A[NAME].weight.data.flatten(1) / KAIMING
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-4, rtol=0)
        best = torch.linalg.svdvals(gradient)[: len(rows)].norm()
        shares.append(float((gradient @ rows.T).norm() / best))
        assert not layer.lora_B[NAME].weight.any()
        if len(shares) == 6:
            break
    assert min(shares) > 0.8


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


@pytest.mark.drill
def test_a_carried_round_cut_off_ends_in_the_same_bytes(
    plan: TrainMaker,
    two: list[tuple[Path, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merged = laid(plan("any")[0], two, tmp_path / "merged")
    asked = {**FAST, "train": {"save_every": 3}, **after(two, "carried", merged)}
    calm, cut = plan("calm", **asked), plan("cut", **asked)
    train_round(*calm, Silent())
    advance, steps = Run.advance, [1, 5]

    def advanced(run: Run) -> None:
        if run.step in steps:
            steps.remove(run.step)
            raise PowerCut
        advance(run)

    monkeypatch.setattr(Run, "advance", advanced)
    # Once before the first resume point, once after it.
    for _ in range(2):
        with pytest.raises(PowerCut):
            train_round(*cut, Silent())
    train_round(*cut, Silent())
    digests = [
        hashlib.sha256((job.folder / LORA).read_bytes()).hexdigest() for _, job in (calm, cut)
    ]
    assert digests[0] == digests[1] and not steps
