"""Keys of [train] that say what a round is trained to do: noise, weights of noise levels, loss."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.recipe.section import Positive, Section


class Objective(Section):
    """What the network is shown and how its answers are judged while it learns. Held-out loss is
    the plain one whatever stands here, so that rounds and strengths can be compared: unmasked too,
    as what a LoRA does to the pixels that it was not trained on is to be seen."""

    noise_offset: float = Field(0.0, ge=0, le=1)
    """Standard deviation of noise that is the same all over a channel, for pictures darker and
    brighter than medium: 0.05 to 0.1 is usual."""
    multires_noise: int = Field(0, ge=0, le=12)
    """Coarser layers of noise added to the noise, each about a third as wide: 6 to 10 are usual."""
    multires_discount: float = Field(0.3, gt=0, lt=1)
    """The factor from one layer of multires_noise to the next coarser one."""
    input_perturbation: float = Field(0.0, ge=0, le=1)
    """Standard deviation of further noise in what is shown, but not in what is asked for: 0.1."""
    min_snr_gamma: Positive | None = None
    """Least noisy timesteps count as if their signal were only so many times their noise: 5."""
    debiased: bool = False
    """Weighs noisier timesteps up by the root of noise to signal."""
    loss: Literal["l2", "huber", "smooth_l1"] = "l2"
    """huber and smooth_l1 count what is far off less than its square: kinder to odd pictures."""
    huber_c: float = Field(0.1, gt=0, le=1)
    """Error from which they count it less, at the schedule's end."""
    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    """How that error falls from 1, without noise, to huber_c, with the most."""

    masked_loss: bool = False
    """Whether each latent pixel's loss counts as much as [cache].masks says of it: as the picture
    is opaque there, or as its mask is white."""
    unmasked_weight: float = Field(0.0, ge=0, le=1)
    """What a pixel that is masked out counts at least."""

    @model_validator(mode="after")
    def _has_a_mask_for_its_floor(self) -> Self:
        if self.unmasked_weight and not self.masked_loss:
            raise ValueError("has unmasked_weight, which does nothing without masked_loss = true")
        return self

    @model_validator(mode="after")
    def _has_one_weighting(self) -> Self:
        if self.debiased and self.min_snr_gamma is not None:
            raise ValueError(
                "has min_snr_gamma and debiased, which both weigh timesteps; keep one of them"
            )
        return self
