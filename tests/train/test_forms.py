"""rsLoRA, DoRA, dropouts and the largest norm: what they make, and that nothing else is made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from pydantic import ValidationError
from torch import Tensor

import merge
from pipeline.errors import RequestError
from pipeline.models.load import load_unet
from pipeline.recipe import BuildRecipe
from pipeline.recipe.base import Base
from pipeline.recipe.lora import Lora
from pipeline.train.adapter import NAME, attach, factors, named, save_lora, set_strength, trainable
from pipeline.train.beside import read_beside, stand_beside
from pipeline.train.denoiser import Denoiser
from pipeline.train.dropout import add_dropouts
from pipeline.train.max_norm import MaxNorm
from pipeline.train.plan import Earlier, RoundTraining, Start
from pipeline.train.run import Run

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]


@pytest.fixture
def base(shards: Path) -> Base:
    return Base(checkpoint=shards / "base")


def fresh(base: Base) -> Denoiser:
    return Denoiser(load_unet(base, None)).eval()


def taught(network: Denoiser, lora: Lora) -> Denoiser:
    """With an adapter whose factors (and magnitudes) stand for a training."""
    attach(network, lora, seed=5)
    generator = torch.Generator().manual_seed(2)
    for parameter in trainable(network):
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
    return network.eval()


@torch.no_grad()
def said(unet: UNet2DConditionModel) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 4, 8, 8, generator=generator)
    hidden = torch.randn(3, 77, unet.config.cross_attention_dim, generator=generator)
    answer: Tensor = unet(latents, torch.tensor([100, 400, 700]), hidden).sample
    return answer


def test_rslora_divides_by_the_root_of_the_rank_and_files_say_so(base: Base) -> None:
    lora = Lora(rank=16, alpha=2, rslora=True, conv_rank=4, conv_alpha=3)
    network = taught(fresh(base), lora)
    saved = factors(network)
    for name, layer in named(network):
        wanted = 3 / 4**0.5 if len(layer.lora_A[NAME].weight) == 4 else 2 / 16**0.5
        assert layer.scaling[NAME] == wanted
        down = saved[f"{name}.lora_down.weight"]
        assert float(saved[f"{name}.alpha"]) / len(down) == wanted
    assert Lora(rank=9, alpha=3, rslora=True, conv_rank=4).convolution_alpha == 4


DORA = Lora(rank=4, alpha=3, conv_rank=2, dora=True)


def test_a_fresh_dora_changes_nothing(base: Base) -> None:
    plain, adapted = fresh(base), fresh(base)
    attach(adapted, DORA, seed=5)
    assert len(trainable(adapted)) == 3 * len(list(named(adapted)))
    torch.testing.assert_close(said(adapted.unet), said(plain.unet), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_a_dora_in_memory_is_its_file_merged(base: Base, tmp_path: Path, strength: float) -> None:
    """As trained, as it stands beside a network from its file, and as our merge adds it."""
    trained = taught(fresh(base), DORA)
    file = tmp_path / "dora.safetensors"
    save_lora(factors(trained), file, {})
    set_strength(trained, strength)
    beside = fresh(base)
    stand_beside(beside, [read_beside(Earlier("judged", file, strength))])
    merge.merge(base.checkpoint, [merge.Addend(file, strength)], tmp_path / "merged")
    merged = load_unet(base, tmp_path / "merged").eval()
    untouched = said(fresh(base).unet)
    torch.testing.assert_close(said(trained.unet), said(merged), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(said(beside.unet), said(merged), atol=2e-5, rtol=1e-4)
    assert ((said(merged) - untouched).abs().max() > 1e-2) == (strength > 0)


def test_a_dora_over_a_dora_is_merged_as_it_was_trained(base: Base, tmp_path: Path) -> None:
    """The second one decomposes what the first has made of the weights, not the origin's."""
    files = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    save_lora(factors(taught(fresh(base), DORA)), files[0], {})
    merge.merge(base.checkpoint, [merge.Addend(files[0], 0.7)], tmp_path / "one")
    second = taught(Denoiser(load_unet(base, tmp_path / "one")).eval(), DORA)
    save_lora(factors(second), files[1], {})
    set_strength(second, 0.6)
    addends = [merge.Addend(file, s) for file, s in zip(files, (0.7, 0.6), strict=True)]
    merge.merge(base.checkpoint, addends, tmp_path / "two")
    both = load_unet(base, tmp_path / "two").eval()
    torch.testing.assert_close(said(second.unet), said(both), atol=2e-5, rtol=1e-4)


def test_doras_do_not_stand_beside_one_another(base: Base, tmp_path: Path) -> None:
    file = tmp_path / "dora.safetensors"
    save_lora(factors(taught(fresh(base), DORA)), file, {})
    two = [read_beside(Earlier(name, file, 1.0)) for name in ("round_01", "round_02")]
    with pytest.raises(RequestError, match="round_01 is a DoRA, whose effect depends"):
        stand_beside(fresh(base), two)


BUILD: dict[str, Any] = {
    "name": "coat",
    "base": {"checkpoint": "none"},
    "dataset": {"recipe": "none.toml"},
    "lora": {"dora": True},
    "rounds": {"refit": False},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rounds": {}}, r"\[rounds\].refit with \[lora\].dora.*Set refit = false"),
        ({"rounds": {"start": "carried", "refit": False}}, "Use another start"),
        ({"baseline": {"single": True}}, r"\[baseline\].single with \[lora\].dora"),
        ({"train": {"precision": "bf16"}}, "Use fp16 or float32"),
        ({"train": {"storage": "fp16"}}, r"\[train\].storage with \[lora\].dora"),
        ({"lora": {"dora": True, "rank_dropout": 0.1}}, "has dora with rank_dropout"),
        ({"lora": {"rslora": True, "block_ranks": "M00 = 2"}}, "has rslora and ranks of blocks"),
        ({"lora": {"max_norm": 1}, "rounds": {"start": "carried"}}, "would scale back"),
        ({"rounds": {"start": "pissa", "refit": False}}, '"pissa" with .*dora.*Use another start'),
        ({"lora": {"max_norm": 1}, "rounds": {"start": "pissa"}}, "do not scale what they add"),
        (
            {"lora": {"max_norm": 1}, "train": {"optimizer": "schedulefreeadamw"}},
            r"\[lora\].max_norm with \[train\].optimizer schedulefreeadamw",
        ),
    ],
)
def test_what_a_form_does_not_go_with(changes: dict[str, Any], said: str) -> None:
    BuildRecipe.model_validate(BUILD)
    with pytest.raises(ValidationError, match=said):
        BuildRecipe.model_validate(BUILD | changes)


def test_the_largest_norm_by_hand(base: Base) -> None:
    """A delta of norm 6 is brought to 1.5, each factor by the half; one below stays bit for bit."""
    network = fresh(base)
    attach(network, Lora(rank=1, alpha=2, blocks="M00"), seed=5)
    (large, first), (small, second), *others = list(named(network))
    for _, layer in named(network):
        layer.lora_A[NAME].weight.data.zero_()
    for layer, value in ((first, 3.0), (second, 0.5)):
        layer.lora_A[NAME].weight.data.flatten(1)[0, 0] = value
        layer.lora_B[NAME].weight.data.flatten(1)[0, 0] = 1.0
    norms = MaxNorm(network, 1.5)
    assert norms.sentence() == "no layer's delta reached [lora].max_norm 1.5"
    for _ in range(2):
        norms.apply()
    assert first.lora_A[NAME].weight.flatten(1)[0, 0].item() == 1.5
    assert first.lora_B[NAME].weight.flatten(1)[0, 0].item() == 0.5
    assert second.lora_A[NAME].weight.flatten(1)[0, 0].item() == 0.5
    assert norms.times() == {large: 1} and small and others
    again = MaxNorm(network, 0.5)
    again.take(norms.times())
    again.apply()
    assert again.sentence().startswith("[lora].max_norm 0.5 scaled back 2 of")
    assert again.sentence().endswith(f"in 2 steps at most: {large}, {small} most often")
    assert again.told() == {"layers": 2, "steps": 2, "most": [large, small]}


@pytest.mark.parametrize("kind", ["dropout", "rank_dropout", "module_dropout"])
def test_dropouts_are_drawn_from_the_seed_in_training_alone(base: Base, kind: str) -> None:
    lora = Lora.model_validate({"rank": 4, "conv_rank": 2, kind: 0.4})
    network, whole = taught(fresh(base), lora), taught(fresh(base), Lora(rank=4, conv_rank=2))
    add_dropouts(network, lora)
    assert said(network.unet).equal(said(whole.unet))
    network.train()

    def seeded(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return said(network.unet)

    first = seeded(1)
    assert first.equal(seeded(1)) and not first.equal(seeded(2))
    assert not first.equal(said(whole.unet))


def test_rank_dropout_leaves_out_whole_directions_of_a_picture(base: Base) -> None:
    lora = Lora(rank=8, conv_rank=8, rank_dropout=0.25)
    network = taught(fresh(base), lora)
    add_dropouts(network, lora)
    network.train()
    for _, layer in list(named(network))[:20]:
        down = layer.lora_A[NAME]
        convolution = isinstance(down, torch.nn.Conv2d)
        inside = down.in_channels if convolution else down.in_features
        x = torch.rand((6, inside, 5, 5) if convolution else (6, 7, inside)) + 1
        dropped, kept = down(x), down.eval()(x)
        share = (dropped / kept).round(decimals=3)
        share = (share.transpose(1, 3) if convolution else share).flatten(1, -2)
        assert share.amin(1).equal(share.amax(1)), "all places of a picture share its directions"
        assert {round(v, 3) for v in share.unique().tolist()} <= {0.0, 1.333}
        down.train()


def test_a_module_is_left_out_of_a_batch_or_stays_as_it_is(base: Base) -> None:
    lora = Lora(rank=4, module_dropout=0.5)
    network = taught(fresh(base), lora)
    add_dropouts(network, lora)
    network.train()
    _, layer = next(iter(named(network)))
    up = layer.lora_B[NAME]
    x = torch.randn(2, 4, 3, 3) if isinstance(up, torch.nn.Conv2d) else torch.randn(2, 3, 4)
    whole = up.eval()(x)
    up.train()
    seen = [up(x) for _ in range(20)]
    left_out = sum(not delta.any() for delta in seen)
    assert 0 < left_out < 20
    assert all(delta.equal(whole) for delta in seen if delta.any())


def test_a_start_along_the_gradient_leaves_no_gradient_behind(plan: TrainMaker) -> None:
    """A DoRA's magnitudes have one too, which the first step must not meet."""
    recipe, training = plan("dora", lora={"dora": True}, training={"start": Start("gradient")})
    run = Run(recipe, training)
    assert all(parameter.grad is None for parameter in run.parameters.values())
