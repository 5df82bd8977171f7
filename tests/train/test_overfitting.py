"""Eight pictures, the demo's base, a LoRA: every optimizer that recipes name learns them."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from demo.drawings import draw, lacquer_scene
from pipeline.models.load import load_scheduler, load_text, load_unet, load_vae
from pipeline.models.scaling import latent_scaling
from pipeline.recipe.base import Base
from pipeline.recipe.lora import Lora
from pipeline.recipe.train import Train
from pipeline.train.adapter import attach, trainable
from pipeline.train.denoiser import Denoiser
from pipeline.train.groups import by_rate
from pipeline.train.objective import noisy, sample_losses, target
from pipeline.train.optimizers import judged, new_optimizer

DEMO = Path(__file__).parents[2] / "demo" / "base"
STEPS = 10
SLOW = pytest.mark.drill
"""Three stand for all in the quick run; a second and more each is too much for ten."""
EIGHT = {"min_8bit_size": 1}
"""Or the states of these small factors would be of 32 bits."""
LEFT = 0.8
"""Share of the loss on these pictures that is left at most."""


@dataclass(frozen=True)
class Lesson:
    """Eight pictures at eight noise levels, the same at every step."""

    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    hidden: Tensor

    def loss(self, unet: nn.Module) -> Tensor:
        mixed = noisy(self.scheduler, self.latents, self.noise, self.timesteps)
        said = unet(mixed, self.timesteps, self.hidden).sample
        wanted = target(self.scheduler, self.latents, self.noise, self.timesteps)
        return sample_losses(said, wanted).mean()


@pytest.fixture(scope="module")
def lesson() -> Lesson:
    base = Base(checkpoint=DEMO / "tiny.safetensors", config=DEMO / "config")
    rng = np.random.default_rng(4)
    scenes = [lacquer_scene(rng) for _ in range(8)]
    pixels = [np.array(draw(scene, 32, 32).convert("RGB")) for scene in scenes]
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = load_vae(base).encode(stacked).latent_dist.mean * latent_scaling(base)
        hidden = (
            load_text(base).encode([", ".join(scene.general_tags()) for scene in scenes]).hidden
        )
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    timesteps = torch.arange(8) * 125 + 60
    return Lesson(load_unet(base), load_scheduler(base), latents, noise, timesteps, hidden)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(
    ("name", "rate", "arguments"),
    [
        pytest.param("adamw", 8e-3, {}, marks=SLOW),
        ("adamw8bit", 8e-3, EIGHT),
        pytest.param("pagedadamw8bit", 8e-3, EIGHT, marks=SLOW),
        pytest.param("lion", 4e-3, {}, marks=SLOW),
        pytest.param("lion8bit", 4e-3, EIGHT, marks=SLOW),
        pytest.param("adafactor", 8e-3, {}, marks=SLOW),
        # They begin at a millionth and feel their way up over hundreds of steps; here are ten.
        ("prodigy", 1.0, {"d0": 5e-3, "growth_rate": 1.02}),
        pytest.param("dadaptadam", 1.0, {"d0": 3e-3, "growth_rate": 1.02}, marks=SLOW),
        pytest.param("dadaptlion", 1.0, {"d0": 2e-3}, marks=SLOW),
        ("schedulefreeadamw", 8e-3, {}),
    ],
)
def test_it_learns_eight_pictures(
    lesson: Lesson, name: str, rate: float, arguments: dict[str, Any]
) -> None:
    unet = copy.deepcopy(lesson.unet)
    attach(Denoiser(unet), Lora(rank=4), seed=1)
    train = Train(optimizer=name, optimizer_args=arguments)
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    optimizer = new_optimizer(train, by_rate(trained, lambda _: rate))
    with torch.no_grad():
        before = float(lesson.loss(unet))
    for _ in range(STEPS):
        optimizer.zero_grad()
        lesson.loss(unet).backward()
        nn.utils.clip_grad_norm_(trainable(unet), 1.0)
        optimizer.step()
    with judged(name, optimizer), torch.no_grad():
        after = float(lesson.loss(unet))
    assert after < LEFT * before
    if arguments is EIGHT:
        assert all(state["state1"].dtype == torch.uint8 for state in optimizer.state.values())
