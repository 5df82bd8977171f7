"""One step of a round against the formulas, worked here: what is shown, asked for, and learned."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.training_utils import compute_snr
from torch import Tensor

from pipeline.artefacts.chain import INDEX_FILE
from pipeline.artefacts.records import LatentRecord, read_records
from pipeline.models.places import EMPTY_CAPTION
from pipeline.models.shards import open_latents, open_texts
from pipeline.recipe import BuildRecipe
from pipeline.size import Size
from pipeline.train.counted import gaussian
from pipeline.train.noise import drawn_noise
from pipeline.train.plan import RoundTraining
from pipeline.train.run import Run

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]
CALM = {"scheduler": "constant", "caption_dropout": 0.0}


def shown(run: Run, batch: int) -> list[tuple[str, LatentRecord]]:
    """Pictures of a batch of the first epoch, in their order."""
    records = {r.md5: r for r in read_records(run.training.latents / INDEX_FILE, LatentRecord)}
    return [(md5, records[md5]) for md5 in run.feed._order.at(batch).md5s]


def test_latents_are_drawn_from_the_posterior_and_scaled(plan: TrainMaker) -> None:
    """The tiny base's configuration leaves the factor at SD's 0.18215."""
    run = Run(*plan(train=CALM))
    store, job = open_latents(run.training.latents), run.training
    for place, (md5, record) in enumerate(shown(run, 1)):
        mean, logvar = (t.float() for t in store.latent(md5, 0, Size(record.width, record.height)))
        drawn = gaussian(tuple(mean.shape), job.seed, job.round, 0, md5, 1, "posterior")
        wanted = 0.18215 * (mean + (logvar / 2).exp() * drawn)
        torch.testing.assert_close(run.feed.at(1).latents[place], wanted)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"noise_offset": 0.3, "min_snr_gamma": 2.0},
        {"multires_noise": 3, "input_perturbation": 0.5, "debiased": True},
    ],
    ids=("plain", "offset-min-snr", "multires-perturbed-debiased"),
)
def test_the_loss_of_a_sample_by_hand(plan: TrainMaker, asked: dict[str, Any]) -> None:
    """DDPM's forward process, the network asked directly, the weight from diffusers' SNR."""
    recipe, job = plan(train={**CALM, **asked})
    run = Run(recipe, job)
    inputs, s = run.feed.at(0), run.noise_schedule
    kept = s.alphas_cumprod[inputs.timesteps].view(-1, 1, 1, 1)
    ratio = compute_snr(s, inputs.timesteps)
    weight = torch.ones_like(ratio)
    if recipe.train.min_snr_gamma:
        weight = ratio.clamp(max=recipe.train.min_snr_gamma) / ratio
    if recipe.train.debiased:
        weight = ratio.clamp(max=1000) ** -0.5
    noise, texts = [], open_texts(job.texts)
    for md5, _ in shown(run, 0):
        key = (job.seed, job.round, 0, md5, 0)
        noise.append(drawn_noise(recipe.train, tuple(inputs.latents.shape[1:]), key))
    wanted = torch.stack(noise)
    further = inputs.shown - wanted
    assert float(further.std()) == pytest.approx(recipe.train.input_perturbation, abs=0.1)
    mixed = kept.sqrt() * inputs.latents + (1 - kept).sqrt() * (wanted + further)
    hidden = torch.stack([texts.hidden(md5, 0) for md5, _ in shown(run, 0)]).float()
    with torch.no_grad():
        said = run.network.unet(mixed, inputs.timesteps, hidden).sample
        found = run.sample_losses(inputs)
    by_hand = weight * (said - wanted).pow(2).mean((1, 2, 3))
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-6)


def test_captions_are_dropped_as_often_as_asked(plan: TrainMaker) -> None:
    run = Run(*plan(train={"caption_dropout": 0.25}))
    empty = open_texts(run.training.texts).hidden(EMPTY_CAPTION, 0).float()
    told = [h for step in range(240) for h in run.feed.at(step).told.hidden]  # type: ignore[union-attr]
    dropped = Counter(bool(hidden.equal(empty)) for hidden in told)[True]
    # The standard deviation of a share of so many throws.
    assert abs(dropped / len(told) - 0.25) < 4 * (0.25 * 0.75 / len(told)) ** 0.5


def test_a_step_is_no_longer_than_the_largest_norm(plan: TrainMaker) -> None:
    """Gradient descent moves by the rate times the gradient, whose norm is clipped."""
    moved = []
    for largest in (1e-4, 1e9):
        run = Run(*plan(train={**CALM, "optimizer": "sgd", "max_grad_norm": largest}))
        before = flat(run)
        run.advance()
        moved.append(float((flat(run) - before).norm()))
    assert moved[0] == pytest.approx(1e-3 * 1e-4, rel=0.02) and moved[1] > 10 * moved[0]


def flat(run: Run) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in run.parameters.values()])


def test_the_moving_average_by_hand(plan: TrainMaker) -> None:
    """diffusers' rises to its decay, which the first steps would else weigh too much: 0 at the
    first, then 2/11, 3/12, … and 0.24 from there on."""
    run = Run(*plan(train={**CALM, "ema_decay": 0.24}))
    wanted = torch.zeros_like(flat(run))
    for decay in (0, 2 / 11, 0.24, 0.24):
        run.advance()
        wanted = decay * wanted + (1 - decay) * flat(run)
    last = flat(run)
    with run.learner.judged():
        torch.testing.assert_close(flat(run), wanted, rtol=1e-4, atol=1e-7)
        assert not flat(run).equal(last)
    assert flat(run).equal(last)


def test_attention_is_torchs_own(plan: TrainMaker) -> None:
    """scaled_dot_product_attention: flash or memory-efficient kernels where there are any."""
    run = Run(*plan(train={**CALM, "text_encoder_rate": 0.5}))
    kinds = {type(each) for each in run.network.unet.attn_processors.values()}
    assert kinds == {AttnProcessor2_0} and run.network.text is not None
    encoders = [reader.encoder for reader in run.network.text.readers]
    assert {encoder.config._attn_implementation for encoder in encoders} == {"sdpa"}


def test_checkpointing_gradients_changes_none(plan: TrainMaker) -> None:
    found = []
    for asked in (False, True):
        run = Run(*plan(train={**CALM, "gradient_checkpointing": asked}))
        assert run.network.unet.is_gradient_checkpointing == asked
        run.sample_losses(run.feed.at(0)).mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in run.parameters.values()]))  # type: ignore[union-attr]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-9)
