"""The networks that a round trains, as one module: a UNet, and text encoders where those learn.

One forward for training and for held-out evaluation, so that what is judged is what was trained.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from pipeline.models.text import TextStack
from pipeline.train.conditioning import Conditioning, Spoken, encoded, predict

WRAPPED = ".base_layer"
"""What peft puts between a layer's path and its own weights'."""
ENCODERS = "encoders."
"""What the path of a text encoder's layer begins with; kohya's name of the encoder follows."""


class Denoiser(nn.Module):
    """From noisy latents, timesteps and what goes with the pictures to what is predicted.

    Args:
        text: encoders that learn, or learnt in an earlier round; None where cached texts are shown.
        shares: of the round's learning rate, by kohya's names of those encoders that learn.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text: TextStack | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.text = text
        self.shares = dict(shares or {})
        names = () if text is None else encoder_names(text)
        readers = () if text is None else text.readers
        self.encoders = nn.ModuleDict(dict(zip(names, (r.encoder for r in readers), strict=True)))
        depths = () if text is None else text.depths
        self._depths = dict(zip(names, depths, strict=True))

    def enable_gradient_checkpointing(self) -> None:
        """Keeps the blocks' inputs alone for the backward pass, and computes the rest again."""
        self.unet.enable_gradient_checkpointing()
        if self.text is not None and self.shares:
            for reader in self.text.readers:
                # The other form gives no gradient to layers whose input has none, as a first one's.
                reader.encoder.activation_checkpointing_enable({"use_reentrant": False})

    def share(self, path: str) -> float:
        """Of the round's learning rate, that the parameter or layer at `path` is trained at."""
        return self.shares.get(path.split(".")[1], 0.0) if path.startswith(ENCODERS) else 1.0

    def learns(self, path: str) -> bool:
        """Whether a text encoder's module at `path` is to learn: one that what is read depends on,
        in an encoder that learns."""
        layer = re.search(r"\.layers\.(\d+)\.", path)
        return (
            layer is not None
            and self.share(path) > 0
            and int(layer[1]) < self._depths[path.split(".")[1]]
        )

    def forward(self, noisy: Tensor, timesteps: Tensor, told: Conditioning | Spoken) -> Tensor:
        """(B, C, H, W), as `predict`; captions in tokens go through the text encoders first."""
        if isinstance(told, Spoken):
            assert self.text is not None
            told = encoded(self.text, told)
        return predict(self.unet, noisy, timesteps, told)


def encoder_names(text: TextStack) -> tuple[str, ...]:
    """kohya's names of its encoders."""
    return ("te",) if len(text.readers) == 1 else ("te1", "te2")


def plain(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Of named modules the network's own linear layers and convolutions, whatever peft wrapped."""
    for path, module in modules:
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in path:
            yield path.removesuffix(WRAPPED), module
