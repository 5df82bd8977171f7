"""The shapes of noise: statistics that their authors state, and draws that are counted."""

import pytest
import torch

from pipeline.recipe.objective import Objective
from pipeline.train.counted import gaussian
from pipeline.train.noise import drawn_noise, shown_noise

SHAPE = (4, 32, 48)


def test_without_a_wish_it_is_the_plain_draw() -> None:
    plain = drawn_noise(Objective(), SHAPE, (1, "a"))
    assert plain.equal(gaussian(SHAPE, 1, "a", "noise"))
    assert shown_noise(Objective(), plain, (1, "a")) is plain


def test_an_offset_moves_whole_channels() -> None:
    objective = Objective(noise_offset=0.5)
    moved = torch.stack([drawn_noise(objective, SHAPE, (n,)) for n in range(200)])
    plain = torch.stack([drawn_noise(Objective(), SHAPE, (n,)) for n in range(200)])
    shift = moved - plain
    assert float(shift.flatten(2).std(dim=2).max()) < 1e-5
    # 800 channels: the standard error of their deviation is 0.0125.
    assert float(shift[:, :, 0, 0].std()) == pytest.approx(0.5, abs=0.05)


def test_multires_noise_is_coarse_and_of_unit_variance() -> None:
    objective = Objective(multires_noise=6, multires_discount=0.5)
    coarse = drawn_noise(objective, SHAPE, (1, "a"))
    assert coarse.shape == SHAPE and float(coarse.std()) == pytest.approx(1, abs=1e-5)
    assert coarse.equal(drawn_noise(objective, SHAPE, (1, "a")))
    assert not coarse.equal(drawn_noise(objective, SHAPE, (1, "b")))

    def neighbours(noise: torch.Tensor) -> float:
        return float((noise[:, :, 1:] * noise[:, :, :-1]).mean())

    draws = [(n, "c") for n in range(20)]
    alike = sum(neighbours(drawn_noise(objective, SHAPE, key)) for key in draws) / 20
    unlike = sum(neighbours(drawn_noise(Objective(), SHAPE, key)) for key in draws) / 20
    assert alike > 0.05 > abs(unlike)


def test_one_layer_by_hand() -> None:
    """The first layer is as wide as the noise: (noise + layer) / its deviation."""
    key = (3, "a")
    both = gaussian(SHAPE, *key, "noise") + gaussian(SHAPE, *key, "multires", 0)
    torch.testing.assert_close(
        drawn_noise(Objective(multires_noise=1), SHAPE, key), both / both.std()
    )


def test_a_perturbed_input_is_asked_for_without_its_perturbation() -> None:
    objective, key = Objective(input_perturbation=0.1), (5, "a")
    noise = drawn_noise(objective, SHAPE, key)
    assert noise.equal(drawn_noise(Objective(), SHAPE, key))
    further = shown_noise(objective, noise, key) - noise
    assert float(further.std()) == pytest.approx(0.1, abs=0.005)
    assert abs(float((further * noise).mean())) < 0.005
