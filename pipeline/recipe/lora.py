"""[lora]: one round's adapter, which layers it covers, and how large it is in each."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.recipe.blocks import Blocks, Family, parse_blocks
from pipeline.recipe.section import Positive, Section

Preset = Literal["full", "attn-mlp", "character"]

CHARACTER = "MIDD"
"""The blocks of the preset `character`, as the LoRA Block Weight extension names them: in SD 1.5
IN05, IN07, IN08, M00 and OUT03-06, in SDXL IN07, IN08, M00 and OUT00-02."""


class Lora(Section):
    """One round's adapter."""

    rank: int = Field(16, ge=1, le=1024)
    alpha: Positive | None = None
    """The delta is alpha / rank x up x down. Default: equal to the rank."""
    conv_rank: int = Field(0, ge=0, le=1024)
    """Rank of 3x3 convolutions (C3Lier / LoCon); the resnets' time projections and shortcuts then
    get `rank`. 0 trains the attention transformers alone."""
    conv_alpha: Positive | None = None
    """Default: conv_rank x alpha / rank, the same scale as the linear layers."""
    preset: Preset = "full"
    """Which layers. full: the attention transformers and, with conv_rank, the resnets: for styles
    and whole models, which reach into colour and line. attn-mlp: attention and feed-forward layers
    of the transformers' blocks, without the projections around them: in the one controlled
    comparison on SD 1.5 that we know of, these closed the gap to full training and convolutions
    added nothing. character: attn-mlp in the deep blocks alone (MIDD of the LoRA Block Weight
    extension), whose users found there who stands where, and colour and line, which a character's
    pictures should not teach, in the shallow ones; we have not measured it."""
    blocks: str | None = None
    """Which blocks of the UNet are trained, and at which share of the round's learning rate:
    "IN04-07, OUT03-06", "IN04-07 = 1, OUT03-06 = 0.5", "M00 = 0, rest = 1", a preset of the LoRA
    Block Weight extension, or a number for each block. What is not named, or is 0, is left out of
    the LoRA. Default: all blocks of the preset."""
    block_ranks: str | None = None
    """Ranks of blocks that differ: "IN04-07 = 8, M00 = 16"; others have `rank`. Alpha follows, so
    that alpha / rank stays."""
    block_conv_ranks: str | None = None
    """As block_ranks, of 3x3 convolutions; 0 leaves a block's out."""

    @model_validator(mode="after")
    def _says_blocks(self) -> Self:
        if self.conv_rank and self.preset != "full":
            raise ValueError(
                f'has conv_rank {self.conv_rank}, and the preset "{self.preset}" covers no '
                'convolutions: take conv_rank out, or use preset = "full"'
            )
        if self.block_conv_ranks is not None and not self.conv_rank:
            raise ValueError("has block_conv_ranks without a conv_rank: set it")
        _read("blocks", self.blocks, 0)
        for key, text, least in (
            ("block_ranks", self.block_ranks, 1),
            ("block_conv_ranks", self.block_conv_ranks, 0),
        ):
            found = _read(key, text, 1)
            for number in (*found.named.values(), found.rest):
                if number != int(number) or not least <= number <= 1024:
                    raise ValueError(
                        f"{key} has {number:g}: ranks are whole numbers, {least} to 1024"
                    )
        return self

    @property
    def linear_alpha(self) -> float:
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def convolution_alpha(self) -> float:
        if self.conv_alpha is not None:
            return self.conv_alpha
        return self.conv_rank * self.linear_alpha / self.rank

    @property
    def linear_scale(self) -> float:
        """The factor on up x down, whatever the rank of a block."""
        return self.linear_alpha / self.rank

    @property
    def convolution_scale(self) -> float:
        return self.convolution_alpha / self.conv_rank

    def rates(self, family: Family) -> Blocks:
        """Each block's share of the learning rate; 0: it is not trained."""
        if self.blocks is not None:
            return _read("blocks", self.blocks, 0, family)
        if self.preset == "character":
            return _read("preset", CHARACTER, 0, family)
        return Blocks({}, 1.0, None)

    def ranks(self, family: Family) -> Blocks:
        """Of linear layers and 1x1 convolutions."""
        return _read("block_ranks", self.block_ranks, self.rank, family)

    def conv_ranks(self, family: Family) -> Blocks:
        """Of larger convolutions."""
        return _read("block_conv_ranks", self.block_conv_ranks, self.conv_rank, family)


def _read(key: str, text: str | None, rest: float, family: Family | None = None) -> Blocks:
    if text is None:
        return Blocks({}, rest, None)
    try:
        return parse_blocks(text, rest, family)
    except ValueError as error:
        raise ValueError(f"{key} {error}") from None
