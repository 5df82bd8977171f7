"""Weights and distances against the papers' numbers, worked by hand, and against diffusers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from pydantic import ValidationError

from pipeline.recipe.objective import Objective
from pipeline.recipe.train import Train
from pipeline.train.objective import sample_losses
from pipeline.train.weighting import snr, thresholds, training_losses, weights

T = torch.tensor([0, 100, 500, 999])


def schedule(kind: str = "epsilon", zero: bool = False) -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=kind,
        rescale_betas_zero_snr=zero,
    )


def ratios(scheduler: DDPMScheduler) -> list[float]:
    return [float(a / (1 - a)) for a in scheduler.alphas_cumprod.double()[T]]


def test_signal_to_noise_is_diffusers() -> None:
    """The first beta is 0.00085: SNR 0.99915 / 0.00085."""
    s = schedule()
    torch.testing.assert_close(snr(s, T), compute_snr(s, T), rtol=1e-4, atol=0)
    assert float(snr(s, T)[0]) == pytest.approx(0.99915 / 0.00085, rel=1e-3)


def test_min_snr_by_hand() -> None:
    objective = Objective(min_snr_gamma=5.0)
    found = weights(objective, schedule(), T).tolist()
    assert found == pytest.approx([min(r, 5) / r for r in ratios(schedule())], rel=1e-3)
    assert found[0] == pytest.approx(5 / (0.99915 / 0.00085), rel=1e-3) and found[3] == 1
    v = weights(objective, schedule("v_prediction"), T).tolist()
    assert v == pytest.approx([min(r, 5) / (r + 1) for r in ratios(schedule())], rel=1e-3)


def test_debiased_by_hand() -> None:
    found = weights(Objective(debiased=True), schedule(), T).tolist()
    wanted = [1 / math.sqrt(min(r, 1000)) for r in ratios(schedule())]
    assert found == pytest.approx(wanted, rel=1e-3)
    v = weights(Objective(debiased=True), schedule("v_prediction"), T).tolist()
    assert v == pytest.approx([1 / (min(r, 1000) + 1) for r in ratios(schedule())], rel=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("settings", [{"min_snr_gamma": 5.0}, {"debiased": True}, {}])
@pytest.mark.parametrize("loss", ["l2", "huber", "smooth_l1"])
def test_no_signal_at_all_is_finite(kind: str, settings: dict[str, float], loss: str) -> None:
    s, last = schedule(kind, zero=True), torch.tensor([999])
    assert float(snr(s, last)) == pytest.approx(0, abs=1e-9)
    objective = Objective.model_validate({**settings, "loss": loss})
    ones = torch.ones(1, 4, 2, 2)
    assert training_losses(objective, s, ones, 0 * ones, last).isfinite().all()
    if settings == {"min_snr_gamma": 5.0}:
        assert float(weights(objective, s, last)) == (1.0 if kind == "epsilon" else 0.0)


def test_thresholds_by_hand() -> None:
    s = schedule()
    exponential = Objective(huber_c=0.1, huber_schedule="exponential")
    assert thresholds(exponential, s, T).tolist() == pytest.approx(
        [1, 0.1**0.1, 0.1**0.5, 0.1**0.999]
    )
    by_snr = Objective(huber_c=0.1, huber_schedule="snr")
    wanted = [0.9 / (1 + r**-0.5) ** 2 + 0.1 for r in ratios(s)]
    assert thresholds(by_snr, s, T).tolist() == pytest.approx(wanted, rel=1e-3)
    constant = Objective(huber_c=0.1, huber_schedule="constant")
    assert thresholds(constant, s, T).tolist() == pytest.approx([0.1] * 4)


def test_huber_and_smooth_l1_by_hand() -> None:
    """d = 0.75 and c = 1: sqrt(0.5625 + 1) = 1.25, so 2 x 0.25."""
    s, one = schedule(), torch.tensor([0])
    d = torch.full((1, 4, 2, 2), 0.75)
    for name in ("huber", "smooth_l1"):
        objective = Objective(loss=name, huber_c=1.0, huber_schedule="constant")
        assert float(training_losses(objective, s, d, 0 * d, one)) == pytest.approx(0.5)
    # c = 0.1 and d = 10: about 2c|d| and 2|d|.
    far = torch.full((1, 4, 2, 2), 10.0)
    for name, wanted in (("huber", 2 * 0.1 * 9.9005), ("smooth_l1", 2 * 9.9005)):
        objective = Objective(loss=name, huber_c=0.1, huber_schedule="constant")
        assert float(training_losses(objective, s, far, 0 * far, one)) == pytest.approx(
            wanted, rel=1e-4
        )


def test_small_errors_are_squared_by_huber() -> None:
    s = schedule()
    prediction, wanted = torch.randn(4, 4, 8, 8) * 1e-3, torch.zeros(4, 4, 8, 8)
    objective = Objective(loss="huber", huber_c=0.5, huber_schedule="constant")
    torch.testing.assert_close(
        training_losses(objective, s, prediction, wanted, T),
        sample_losses(prediction, wanted),
        rtol=2e-2,
        atol=1e-8,
    )


def test_two_weightings_are_one_too_many() -> None:
    with pytest.raises(ValidationError, match="keep one of them"):
        Train(min_snr_gamma=5.0, debiased=True)
