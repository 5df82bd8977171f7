"""[rounds].start = "pissa": it learns what peft's does, leaves the base, and saves a LoRA."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

import merge
from pipeline.errors import RequestError
from pipeline.models.load import load_text, load_unet
from pipeline.progress import Silent
from pipeline.recipe import BuildRecipe
from pipeline.recipe.lora import Lora
from pipeline.train import network as network_of
from pipeline.train.adapter import NAME, factors, named
from pipeline.train.carry import Leading
from pipeline.train.network import load_base
from pipeline.train.plan import Earlier, RoundTraining, Start
from pipeline.train.principal import BEGAN, begin_there, beginnings, principal, whole
from pipeline.train.product import LORA, write_product
from pipeline.train.round import train_round
from pipeline.train.run import Run

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]
Said = Callable[[Any], Tensor]
RANKS = {"rank": 4, "alpha": 3, "conv_rank": 2, "block_ranks": "M00 = 3"}
PISSA: dict[str, Any] = {
    "learning_rate": 5e-3,
    "lora": RANKS,
    "training": {"start": Start("pissa")},
}


def adapted(way: bool | str, alpha: float) -> tuple[nn.Module, LoraLayer]:
    """One layer of fixed weights under a LoRA of rank 3, started by peft's word for it."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(12, 8))
    config = LoraConfig(r=3, lora_alpha=alpha, target_modules=["0"], init_lora_weights=way)
    inject_adapter_in_model(config, model, NAME)
    layer = model[0]
    assert isinstance(layer, LoraLayer)
    return model, layer


@pytest.mark.parametrize("alpha", [1.5, 6.0])
def test_it_learns_what_pefts_does(alpha: float) -> None:
    """Beside peft's own PiSSA, which alters the base: the same function after every step, and the
    file holds the way from the base, by whole matrices."""
    theirs, reference = adapted("pissa", alpha)
    ours, layer = adapted(True, alpha)
    weight = layer.get_base_layer().weight.detach().clone()
    first = {part: getattr(reference, part)[NAME].weight for part in ("lora_A", "lora_B")}
    root = layer.scaling[NAME] ** 0.5
    down, up = (first[part].detach().clone() for part in ("lora_A", "lora_B"))
    begin_there(layer, NAME, Leading(up * root, down * root))
    began = up @ down * layer.scaling[NAME]
    x, wanted = torch.randn(5, 12), torch.randn(5, 8)
    makers = [
        torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for model in (theirs, ours)
    ]
    for step in range(6):
        torch.testing.assert_close(ours(x), theirs(x), atol=2e-5, rtol=1e-4)
        assert step > 0 or ours(x).equal(nn.functional.linear(x, weight, layer.base_layer.bias))
        for optimizer, model in zip(makers, (theirs, ours), strict=True):
            optimizer.zero_grad()
            (model(x) - wanted).square().mean().backward()
            optimizer.step()
    assert layer.base_layer.weight.equal(weight), "the base stays the user's"
    saved_down, saved_up = whole(layer, NAME)
    assert (len(saved_down), saved_up.shape[1]) == (6, 6)
    learnt = first["lora_B"] @ first["lora_A"] * layer.scaling[NAME] - began
    found = saved_up @ saved_down * layer.scaling[NAME]
    torch.testing.assert_close(found, learnt, atol=1e-5, rtol=1e-4)
    assert learnt.norm() > 0.1


def test_small_steps_are_seen_in_sixteen_bits() -> None:
    """Why A0 and B0 do not stand at -1 beside A and B: there bf16 products lose what was learnt."""
    torch.manual_seed(5)
    _, layer = adapted(True, 3.0)
    weight = layer.base_layer.weight.data
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = values[:3].sqrt()
    up, down = left[:, :3] * root, right[:3] * root[:, None]
    begin_there(layer, NAME, Leading(up, down))
    steps = [torch.randn_like(t) * 1e-4 for t in (down, up)]
    for factor, step in zip((layer.lora_A[NAME], layer.lora_B[NAME]), steps, strict=True):
        factor.weight.data.copy_(step)
    x = torch.randn(64, 12)
    full = x @ ((up + steps[1]) @ (down + steps[0]) - up @ down).T
    with torch.autocast("cpu", torch.bfloat16):
        ours = layer.lora_B[NAME](layer.lora_A[NAME](x))
        now = nn.functional.linear(nn.functional.linear(x, down + steps[0]), up + steps[1])
        apart = now - nn.functional.linear(nn.functional.linear(x, down), up)
    assert (ours - full).norm() < 0.01 * full.norm()
    assert (apart - full).norm() > full.norm()


def test_it_starts_at_the_weights_leading_directions(said: Said, plan: TrainMaker) -> None:
    """Convolutions too, each of its own rank, at the scale; and both factors have a gradient."""
    recipe, training = plan("start", **PISSA)
    run, plain = Run(recipe, training), Run(*plan("plain", lora=RANKS))
    assert said(run.network.unet).equal(said(plain.network.unet)), "nothing changes"
    ranks = set()
    for _, layer in named(run.network):
        down, up = layer.lora_A[NAME].began, layer.lora_B[NAME].began
        weight = layer.get_base_layer().weight.float().flatten(1)
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        rank = len(down)
        best = left[:, :rank] * values[:rank] @ right[:rank]
        found = up.flatten(1) @ down.flatten(1) * layer.scaling[NAME]
        assert (weight - found).norm() < 1.01 * (weight - best).norm()
        ranks.add(rank)
    assert ranks == {2, 3, 4}
    for each in (run, plain):
        each._gradients()
    moved = [
        [bool(part[NAME].weight.grad.any()) for part in (layer.lora_A, layer.lora_B)]
        for each in (run, plain)
        for _, layer in named(each.network)
    ]
    half = len(moved) // 2
    assert all(down and up for down, up in moved[:half])
    assert not any(down for down, _ in moved[half:])


def test_the_saved_delta_is_what_training_saw(said: Said, plan: TrainMaker, tmp_path: Path) -> None:
    """UNet and text encoder, at a strength: the file merged is the network in memory; and the rank
    that it says is the file's."""
    recipe, training = plan("seen", **PISSA, train={"text_encoder_rate": 0.5})
    run = Run(recipe, training)
    for _ in range(3):
        run.advance()
    run.look()
    before = said(load_unet(recipe.base))
    for strength in (1.0, 0.4):
        for _, layer in named(run.network):
            layer.set_scale(NAME, strength)
        end, text = said(run.network.unet), run.network.text
        assert text is not None
        told = text.encode(["red circle"]).hidden
        for _, layer in named(run.network):
            layer.set_scale(NAME, 1.0)
        if strength == 1.0:
            write_product(run)
        out = tmp_path / f"whole-{strength}"
        merge.merge(recipe.base.checkpoint, [merge.Addend(training.folder / LORA, strength)], out)
        assert (end - before).abs().max() > 1e-2
        torch.testing.assert_close(said(load_unet(recipe.base, out)), end, atol=1e-4, rtol=0)
        merged = load_text(recipe.base, out).encode(["red circle"]).hidden
        torch.testing.assert_close(merged, told, atol=1e-4, rtol=0)
    lengths = {
        len(t) for k, t in load_file(training.folder / LORA).items() if k.endswith("down.weight")
    }
    assert lengths == {4, 6, 8}


@pytest.mark.parametrize("storage", ["fp16", "bf16", "fp8", "int8", "nf4"])
def test_no_storage_of_the_base_loses_anything(said: Said, plan: TrainMaker, storage: str) -> None:
    """The start is the stored base's own function, bit for bit; and what is saved, beside such a
    base as it is judged, is what was in memory."""
    recipe, training = plan("stored", **PISSA, train={"storage": storage, "precision": "float32"})
    run = Run(recipe, training)
    plain = load_base(recipe.base, None, (), recipe.train.storage, "no")
    assert said(run.network.unet).equal(said(plain.unet))
    for _ in range(2):
        run.advance()
    run.look()
    write_product(run)
    lora = Earlier("judged", training.folder / LORA, 1.0)
    judged = load_base(recipe.base, None, (lora,), recipe.train.storage, "no")
    end = said(run.network.unet)
    torch.testing.assert_close(said(judged.unet), end, atol=1e-4, rtol=0)
    assert (end - said(plain.unet)).abs().max() > 1e-2


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


def test_cut_off_it_goes_on_from_the_directions_that_it_had(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes; after a resume point nobody decomposes weights again."""
    asked = {**PISSA, "train": {"save_every": 3}}
    calm, again = plan("calm", **asked), plan("cut", **asked)
    train_round(*calm, Silent())
    advance, steps, looked = Run.advance, [1, 5], []

    def advanced(run: Run) -> None:
        if run.step in steps:
            steps.remove(run.step)
            raise PowerCut
        advance(run)

    def seen(*asked: Any) -> Any:
        looked.append(asked)
        return principal(*asked)

    monkeypatch.setattr(Run, "advance", advanced)
    monkeypatch.setattr(network_of, "principal", seen)
    for _ in range(2):
        with pytest.raises(PowerCut):
            train_round(*again, Silent())
    train_round(*again, Silent())
    assert len(looked) == 2 and not steps
    digests = [
        hashlib.sha256((job.folder / LORA).read_bytes()).digest() for _, job in (calm, again)
    ]
    assert digests[0] == digests[1]


def test_another_starts_resume_point_is_refused_even_if_forced(plan: TrainMaker) -> None:
    recipe, training = plan("other", lora=RANKS)
    run = Run(recipe, training)
    run.advance()
    run.save()
    forced = replace(training, start=Start("pissa"), force=True, fingerprint="other")
    with pytest.raises(RequestError, match=r"another start, which cannot be gone on with.*start"):
        train_round(recipe, forced, Silent())
    assert len(list(training.folder.glob("*.pt"))) == 1


def test_a_file_to_go_on_with_comes_first(plan: TrainMaker, tmp_path: Path) -> None:
    """[lora].init is round 1's start whatever the others' is."""
    recipe, training = plan("file", **PISSA)
    train_round(recipe, training, Silent())
    mine = tmp_path / "mine.safetensors"
    trained = load_file(training.folder / LORA)
    recipe, training = plan(
        "on",
        lora={"rank": 8, "alpha": 6, "conv_rank": 4, "block_ranks": "M00 = 6"},
        training={"start": Start("pissa", init=mine)},
    )
    (tmp_path / "file" / LORA).rename(mine)
    run = Run(recipe, training)
    assert not beginnings(run.network)
    name = next(key for key in factors(run.network) if key.endswith("lora_up.weight"))
    assert trained[name].any() and factors(run.network)[name].shape == trained[name].shape


def test_rank_dropout_leaves_out_a_direction_and_where_it_began(plan: TrainMaker) -> None:
    """What is left out adds nothing: half of it would be the base's own direction, taken away."""
    recipe, training = plan("dropped", **{**PISSA, "lora": {"rank": 4, "rank_dropout": 0.5}})
    run = Run(recipe, training)
    _, layer = next(iter(named(run.network)))
    down = layer.lora_A[NAME]
    down.weight.data.copy_(getattr(down, BEGAN))
    seen = down(torch.rand(6, down.in_channels, 3, 3) + 1)
    first, second = seen.chunk(2, 1)
    torch.testing.assert_close(first, second)
    out = (first == 0).flatten(2).all(2)
    assert out.any() and not out.all()


def test_pefts_word_for_it_is_told_where_it_belongs() -> None:
    with pytest.raises(ValidationError, match=r'PiSSA is \[rounds\].start = "pissa"'):
        Lora.model_validate({"init": "pissa_niter_4"})
    assert Lora.model_validate({"init": "pissa.safetensors"}).init == Path("pissa.safetensors")
