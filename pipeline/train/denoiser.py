"""The network that a round trains, as one module.

One forward for training and for held-out evaluation, so that what is judged is what was trained.
"""

from collections.abc import Iterable, Iterator

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from pipeline.train.conditioning import Conditioning, predict

WRAPPED = ".base_layer"
"""What peft puts between a layer's path and its own weights'."""


class Denoiser(nn.Module):
    """From noisy latents, timesteps and what goes with the pictures to what is predicted."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, timesteps: Tensor, told: Conditioning) -> Tensor:
        """(B, C, H, W), as `predict`."""
        return predict(self.unet, noisy, timesteps, told)


def plain(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Of named modules the network's own linear layers and convolutions, whatever peft wrapped."""
    for path, module in modules:
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in path:
            yield path.removesuffix(WRAPPED), module
