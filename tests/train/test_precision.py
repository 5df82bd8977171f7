"""What a round starts from, whatever holds the origin's weights: the exact sum of what was learned.

On the demo's base, which has learned something, with three late rounds' small deltas.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from demo.drawings import draw, lacquer_scene
from pipeline.models.load import load_scheduler, load_text, load_unet, load_vae
from pipeline.models.scaling import latent_scaling
from pipeline.recipe.base import Base
from pipeline.recipe.lora import Lora
from pipeline.recipe.train import Storage, Train
from pipeline.train.adapter import attach, factors, save_lora, trainable
from pipeline.train.beside import Beside, read_beside, stand_beside
from pipeline.train.conditioning import Conditioning
from pipeline.train.denoiser import Denoiser, plain
from pipeline.train.naming import kohya_names
from pipeline.train.objective import noisy, sample_losses, target
from pipeline.train.plan import Earlier
from pipeline.train.precision import autocast, judging_precision, mixed_precision, storage_of
from pipeline.train.storage import DTYPES, loaded_in, store

BASE = Path(__file__).parents[2] / "demo" / "base"
PICTURES = 6
ROUNDS = 2
STRENGTH = 0.03
"""Of what four steps learn: late rounds' size, rms 1e-5 and less on weights of hundredths."""


@dataclass(frozen=True)
class Shown:
    """A held-out batch, the origin, and late rounds."""

    origin: Denoiser
    rounds: tuple[Beside, ...]
    noisy: torch.Tensor
    timesteps: torch.Tensor
    told: Conditioning
    wanted: torch.Tensor

    def losses(self, network: Denoiser) -> torch.Tensor:
        said = network(self.noisy, self.timesteps, self.told)
        return sample_losses(said, self.wanted)

    @torch.no_grad()
    def loss(self, network: Denoiser, mixed: str = "no") -> float:
        with autocast(torch.device("cpu"), mixed):
            return float(self.losses(network).double().mean())


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    base = Base(checkpoint=BASE / "tiny.safetensors", config=BASE / "config")
    scenes = [lacquer_scene(np.random.default_rng(seed)) for seed in range(PICTURES)]
    drawn = np.stack([np.asarray(draw(scene, 32, 32).convert("RGB")) for scene in scenes])
    pixels = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1
    captions = [", ".join(scene.general_tags()) for scene in scenes]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        latents = load_vae(base).encode(pixels).latent_dist.mean * latent_scaling(base)
        told = Conditioning(load_text(base).encode(captions).hidden, None)
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.randint(0, 1000, (PICTURES,), generator=generator)
    scheduler = load_scheduler(base)
    mixed = noisy(scheduler, latents, noise, timesteps)
    wanted = target(scheduler, latents, noise, timesteps)
    origin = Denoiser(load_unet(base)).eval()
    case = Shown(origin, (), mixed, timesteps, told, wanted)
    rounds = []
    for number in range(ROUNDS):
        learner = copy.deepcopy(origin)
        attach(learner, Lora(rank=8, conv_rank=8), seed=number)
        optimizer = torch.optim.Adam(trainable(learner), lr=1e-3)
        for _ in range(4):
            optimizer.zero_grad()
            case.losses(learner).mean().backward()
            optimizer.step()
        path = tmp_path_factory.mktemp("rounds") / "lora.safetensors"
        save_lora(factors(learner), path, {})
        rounds.append(read_beside(Earlier(f"round_{number}", path, STRENGTH)))
    return Shown(origin, tuple(rounds), mixed, timesteps, told, wanted)


def add(network: Denoiser, lora: Beside) -> None:
    """kohya's formula, in float32."""
    layers = dict(plain(network.named_modules()))
    for path, name in kohya_names(network, layers).items():
        delta = lora.deltas.get(name)
        if delta is not None:
            weight: nn.Parameter = layers[path].weight
            product = delta.up.flatten(1) @ delta.down.flatten(1)
            scale = lora.strength * delta.alpha / len(delta.down)
            weight.data += scale * product.reshape(weight.shape)


@pytest.mark.parametrize(
    ("precision", "storage"),
    [
        ("float32", "auto"),
        ("float32", "fp16"),
        ("bf16", "auto"),
        ("float32", "bf16"),
        ("float32", "fp8"),
        ("float32", "int8"),
        ("float32", "nf4"),
    ],
)
def test_a_rounds_start_is_the_exact_checkpoint(shown: Shown, precision: str, storage: str) -> None:
    """The share of the origin's loss that is left after the earlier rounds is the exact one's to
    0.1 %, for an origin whose weights this storage can hold, as published ones are in 16 bits."""
    train = Train.model_validate({"precision": precision, "storage": storage})
    trained = mixed_precision(train.precision)
    kept, mixed = storage_of(train, trained), judging_precision(trained)
    held = copy.deepcopy(shown.origin)
    store(held, kept, mixed)
    origin = opened(held, shown.origin)
    exact = copy.deepcopy(origin)
    for lora in shown.rounds:
        add(exact, lora)
    wanted = shown.loss(exact) / shown.loss(origin)
    beside, merged = copy.deepcopy(origin), exact
    store(beside, kept, mixed)
    store(merged, kept, mixed)
    before = shown.loss(beside, mixed)
    stand_beside(beside, shown.rounds)
    assert shown.loss(beside, mixed) / before == pytest.approx(wanted, rel=1e-3)
    after_merge = shown.loss(merged, mixed) / before
    assert (after_merge == pytest.approx(wanted, rel=1e-3)) == (not train.earlier_beside)


def test_bf16_products_hide_late_rounds_even_beside(shown: Shown) -> None:
    """Why nothing is judged in them."""
    network = copy.deepcopy(shown.origin)
    store(network, "bf16", "bf16")
    origin, before = opened(network, shown.origin), shown.loss(network, "bf16")
    exact = copy.deepcopy(origin)
    for lora in shown.rounds:
        add(exact, lora)
    stand_beside(network, shown.rounds)
    gained = 1 - shown.loss(network, "bf16") / before
    assert gained < 0.5 * (1 - shown.loss(exact) / shown.loss(origin))


@torch.no_grad()
def opened(held: Denoiser, origin: Denoiser) -> Denoiser:
    """float32 weights of what a stored network's layers do."""
    full = copy.deepcopy(origin)
    layers = dict(plain(full.named_modules()))
    for path, layer in plain(held.named_modules()):
        weight: nn.Parameter = layers[path].weight
        scale = getattr(layer, "scale", torch.ones(()))
        if layer.weight.dtype.is_floating_point:
            weight.data = layer.weight.float() * scale
        else:
            bias = 0.0 if layer.bias is None else layer.bias
            weight.data = (layer(torch.eye(weight.shape[1])) - bias).T.contiguous()
    return full


@pytest.mark.parametrize("storage", ["bf16", "fp8", "nf4"])
def test_a_round_learns_on_any_storage(shown: Shown, storage: Storage) -> None:
    """Gradients through stored weights are those of the same weights in full."""
    network = copy.deepcopy(shown.origin)
    store(network, storage, "no")
    attach(network, Lora(rank=4, conv_rank=4), seed=1)
    full = copy.deepcopy(shown.origin)
    attach(full, Lora(rank=4, conv_rank=4), seed=1)
    for each in (network, full):
        shown.losses(each).mean().backward()
    cosine = torch.nn.functional.cosine_similarity(gradient(network), gradient(full), dim=0)
    assert cosine > (0.98 if storage == "nf4" else 0.995)


def gradient(network: Denoiser) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in trainable(network) if p.grad is not None])


@pytest.mark.parametrize(
    ("storage", "mixed"), [("fp16", "fp16"), ("bf16", "bf16"), ("fp8", "fp16"), ("nf4", "bf16")]
)
def test_weights_read_in_half_precision_are_stored_alike(storage: Storage, mixed: str) -> None:
    base = Base(checkpoint=BASE / "tiny.safetensors", config=BASE / "config")
    half = load_unet(base, dtype=loaded_in(storage, mixed))
    assert {p.dtype for p in half.parameters()} == {DTYPES[mixed]}
    whole = load_unet(base)
    for unet in (half, whole):
        store(unet, storage, mixed)
    expected = whole.state_dict()
    assert half.state_dict().keys() == expected.keys()
    assert all(tensor.equal(expected[name]) for name, tensor in half.state_dict().items())
