"""[train]: how one round trains."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.recipe.objective import Objective
from pipeline.recipe.optimizers import OptimizerName
from pipeline.recipe.running import Running
from pipeline.recipe.section import Positive

Storage = Literal["float32", "fp16", "bf16", "fp8", "int8", "nf4"]
Share = Annotated[float, Field(ge=0, le=10)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Argument = bool | int | float | str | tuple[float, ...]
Scheduler = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]


class Train(Objective, Running):
    """How one round trains."""

    batch_size: int = Field(1, ge=1)
    optimizer: OptimizerName = "adamw8bit"
    """adamw, adamw8bit, pagedadamw8bit, lion, lion8bit, adafactor, prodigy, dadaptadam, dadaptlion,
    schedulefreeadamw, any other class of pytorch-optimizer, or a dotted path to a class."""
    optimizer_args: dict[str, Argument] = Field(default_factory=dict)
    """Further arguments of the optimizer by its own names: {d_coef = 2.0} for prodigy, {fused =
    true} for adamw in one kernel a step (on GPUs it is else foreach, in a few)."""
    betas: tuple[Beta, ...] | None = Field(None, min_length=1, max_length=3)
    """Decay rates of the moments. Default: the optimizer's own."""
    weight_decay: float | None = Field(None, ge=0)
    """Default: the optimizer's own, 0.01 for AdamW."""
    scheduler: Scheduler = "cosine"
    """The learning rate inside a round; all but constant rise over a warm-up first."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of a round's steps over which the rate rises."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps over which the rate rises, instead of a share."""
    min_rate: float = Field(0.1, ge=0, lt=1)
    """Share of the peak at which a falling rate ends."""
    cycles: int = Field(1, ge=1)
    """Times that cosine_with_restarts falls within a round."""
    power: Positive = 1.0
    """Exponent of polynomial: 1 falls in a line, 2 faster at first."""
    text_encoder_rate: Share | tuple[Share, Share] = 0.0
    """The text encoders' learning rate as a share of the round's, for a LoRA that covers them too:
    0.5 is usual. Two numbers are of SDXL's first and second encoder. 0: it stays as it is; where
    none learns, what they give is cached, and training needs none of them in memory."""
    max_grad_norm: Positive = 1.0
    caption_dropout: float = Field(0.05, ge=0, lt=1)
    """Share of samples trained with the empty caption, which guidance needs."""
    precision: Literal["auto", "fp16", "bf16", "float32"] = "auto"
    """Of the products: fp16 and bf16 are autocast with float32 LoRA weights; auto takes fp16 on a
    GPU. bf16 rounds coarsely: in training it hides a part of what a small LoRA adds, and held-out
    losses are computed in float32; float32 with storage = "bf16" hides nothing."""
    storage: Literal["auto"] | Storage = "auto"
    """How the frozen base lies in memory: auto is the products' own type; fp8 keeps a byte a
    weight; int8 and nf4 (half a byte) are bitsandbytes', with convolutions in fp8."""
    earlier_rounds: Literal["auto", "merged", "adapters"] = "auto"
    """How a round sees those before it. merged: in the base's weights. adapters: as frozen LoRAs
    beside the origin, each at its strength. auto: adapters where precision or storage would round
    late rounds away (bf16, fp8, int8, nf4), else merged."""
    accumulation: int = Field(1, ge=1)
    """Batches whose gradients are added up to one step: a step sees so many times batch_size
    pictures, in the memory that one batch takes."""
    ema_decay: float = Field(0, ge=0, lt=1)
    """The LoRA is the moving average of its factors over the steps, the older ones fading at this
    rate (0.99 to 0.999 for rounds of thousands of steps); 0: the factors after the last step."""

    @property
    def asks_of_its_optimizer(self) -> bool:
        """Whether its class must be looked at to know that it can do what is asked."""
        given = self.betas is not None or self.weight_decay is not None
        return "." in self.optimizer or given or bool(self.optimizer_args)

    @property
    def encoder_rates(self) -> tuple[float, float]:
        """Of the first and the second text encoder, as shares of the round's rate."""
        rates = self.text_encoder_rate
        return rates if isinstance(rates, tuple) else (rates, rates)

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder learns."""
        return any(self.encoder_rates)

    @property
    def rates_apart(self) -> bool:
        """Whether a text encoder learns at another rate than the UNet."""
        return any(rate not in (0, 1) for rate in self.encoder_rates)

    @property
    def earlier_beside(self) -> bool:
        """Whether earlier rounds stand beside the origin's weights."""
        if self.earlier_rounds != "auto":
            return self.earlier_rounds == "adapters"
        coarse = ("bf16", "fp8", "int8", "nf4")
        return self.precision in coarse or self.storage in coarse
