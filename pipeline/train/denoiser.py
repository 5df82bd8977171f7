"""The networks that a round trains, as one module: a UNet, and text encoders where those learn too.

One forward for training and for held-out evaluation, so that what is judged is what was trained.
"""

from collections.abc import Iterable, Iterator

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from pipeline.models.text import TextStack
from pipeline.train.conditioning import Conditioning, Spoken, predict, with_sizes

WRAPPED = ".base_layer"
"""What peft puts between a layer's path and its own weights'."""


class Denoiser(nn.Module):
    """From noisy latents, timesteps and captions to what the network predicts."""

    def __init__(self, unet: UNet2DConditionModel, text: TextStack | None = None) -> None:
        super().__init__()
        self.unet = unet
        readers = () if text is None else text.readers
        names = ("te",) if len(readers) == 1 else ("te1", "te2")
        # By kohya's names, so that a parameter's path says which encoder's it is.
        self.encoders = nn.ModuleDict(dict(zip(names, (r.encoder for r in readers), strict=False)))
        self.text = text

    @property
    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """(path, network): "unet", and "encoders.te" or "encoders.te1" and "encoders.te2"."""
        yield "unet", self.unet
        for name, encoder in self.encoders.items():
            yield f"encoders.{name}", encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, told: Conditioning | Spoken) -> Tensor:
        """(B, C, H, W), as `predict`; captions in tokens go through the text encoders first."""
        if isinstance(told, Spoken):
            assert self.text is not None
            told = with_sizes(self.text.forward(told.tokens), told.time_ids)
        return predict(self.unet, noisy, timesteps, told)


def plain(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Of named modules the network's own linear layers and convolutions, whatever peft wrapped."""
    for path, module in modules:
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in path:
            yield path.removesuffix(WRAPPED), module
