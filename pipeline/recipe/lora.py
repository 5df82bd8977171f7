"""[lora]: one round's adapter, which layers it covers, and how large it is in each."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.recipe.blocks import Blocks, Family, parse_blocks
from pipeline.recipe.section import Positive, RecipePath, Section

Preset = Literal["full", "attn-mlp", "character"]

CHARACTER = "MIDD"
"""The blocks of the preset `character`, as the LoRA Block Weight extension names them: in SD 1.5
IN05, IN07, IN08, M00 and OUT03-06, in SDXL IN07, IN08, M00 and OUT00-02."""

RANKS = ("block_ranks", "block_conv_ranks")
"""Keys whose numbers are ranks: a block that stands without one means nothing there."""


class Lora(Section):
    """One round's adapter."""

    rank: int = Field(16, ge=1, le=1024)
    alpha: Positive | None = None
    """The delta is alpha / rank x up x down. Default: equal to the rank, for a factor of 1."""
    conv_rank: int = Field(0, ge=0, le=1024)
    """Rank of 3x3 convolutions (C3Lier / LoCon); the resnets' time projections and shortcuts then
    get `rank`. 0 trains the attention transformers alone."""
    conv_alpha: Positive | None = None
    """Default: conv_rank x alpha / rank, the same scale as the linear layers."""
    rslora: bool = False
    """The factor is alpha / root of rank (Kalajdzievski 2023, arXiv 2312.03732), so that a high
    rank is not slowed down; files say the alpha that means the same by alpha / rank."""
    dora: bool = False
    """Magnitudes of the outputs are trained beside the factors (DoRA: Liu et al. 2024, arXiv
    2402.09353). Slower by a third and more, and read by fewer programs: diffusers drops them."""
    dropout: float = Field(0, ge=0, lt=1)
    """Share of a layer's input that the LoRA does not see in a step."""
    rank_dropout: float = Field(0, ge=0, lt=1)
    """Share of a layer's directions that are left out for a picture; the others grow for it."""
    module_dropout: float = Field(0, ge=0, lt=1)
    """Share of the layers whose delta is left out of a batch."""
    max_norm: Positive | None = None
    """The largest Frobenius norm that a layer's delta may have; after each step what is above is
    scaled back (kohya's scale_weight_norms; 1.0 is usual). The receipt says what was."""
    init: RecipePath | None = None
    """A LoRA that round 1 goes on with (kohya's, diffusers' or PEFT's), of the ranks that are asked
    for here; its delta is part of round 1's. Layers that it has not start fresh. Other rounds start
    by [rounds].start."""
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
    """Ranks of blocks that differ: "IN04-07 = 8, M00 = 16"; others have `rank`. Alpha stays, as in
    kohya's files: diffusers reads one for all attention layers."""
    block_conv_ranks: str | None = None
    """As block_ranks, of 3x3 convolutions; 0 leaves a block's out."""

    @field_validator("init", mode="before")
    @classmethod
    def _is_no_method(cls, init: object) -> object:
        """What PEFT's init_lora_weights takes is looked for here."""
        if str(init).startswith("pissa") and not Path(str(init)).suffix:
            raise ValueError('is a LoRA file; PiSSA is [rounds].start = "pissa"')
        return init

    @model_validator(mode="after")
    def _says_blocks(self) -> Self:
        if self.conv_rank and self.preset != "full":
            raise ValueError(
                f'has conv_rank {self.conv_rank}, and the preset "{self.preset}" covers no '
                'convolutions: take conv_rank out, or use preset = "full"'
            )
        if self.dora and (self.rank_dropout or self.module_dropout or self.max_norm):
            raise ValueError(
                "has dora with rank_dropout, module_dropout or max_norm, which would change the "
                "norms that it divides by: take them out; dropout goes with it"
            )
        if self.block_conv_ranks is not None and not self.conv_rank:
            raise ValueError("has block_conv_ranks without a conv_rank: set it")
        if self.dora and self.init is not None:
            raise ValueError("has dora and init: only a plain LoRA can be gone on with")
        if self.rslora and (self.block_ranks is not None or self.block_conv_ranks is not None):
            raise ValueError(
                "has rslora and ranks of blocks: an alpha for each rank, which diffusers would not "
                "read. Take one of them out"
            )
        if self.rslora and self.alpha is None:
            raise ValueError(
                "has rslora without an alpha, whose default gives a factor of 1 either way: "
                "set alpha"
            )
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
        """As files have it: the factor on up x down is alpha / rank."""
        if self.alpha is None:
            return float(self.rank)
        return self.alpha * self.rank**0.5 if self.rslora else self.alpha

    @property
    def convolution_alpha(self) -> float:
        if self.conv_alpha is None:
            return self.conv_rank * self.linear_scale
        return self.conv_alpha * self.conv_rank**0.5 if self.rslora else self.conv_alpha

    @property
    def linear_scale(self) -> float:
        """The factor on up x down."""
        return self.linear_alpha / self.rank

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
        return parse_blocks(text, rest, family, alone=key not in RANKS)
    except ValueError as error:
        raise ValueError(f"{key} {error}") from None
