"""Strengths apart for UNet and text encoders, as numbers and back."""

import pytest

from pipeline.artefacts.strength import Strength, adds, asked, on, shrunk, told
from pipeline.rounds.parting import Parting

MERGED: tuple[Strength, ...] = (0.9, (0.5, 0.25), 1.0)


def test_numbers_and_strengths_are_one_another() -> None:
    parting = Parting((False, True, False))
    assert parting.flat(MERGED) == (0.9, 0.5, 0.25, 1.0)
    assert parting.strengths((0.9, 0.5, 0.25, 1.0)) == MERGED
    # One strength for both is where a search for two begins.
    assert Parting((True,)).flat([0.7]) == (0.7, 0.7)


@pytest.mark.parametrize(
    ("strength", "unet", "text", "said", "asked_for"),
    [
        (0.7, 0.7, 0.7, "0.7", "0.7"),
        ((0.5, 0.25), 0.5, 0.25, "0.5 (text encoders 0.25)", "unet=0.5,te=0.25"),
    ],
)
def test_each_network_has_its_factor(
    strength: Strength, unet: float, text: float, said: str, asked_for: str
) -> None:
    assert on(strength, "lora_unet_mid_block_attentions_0_proj_in") == unet
    assert on(strength, "lora_te2_text_model_encoder_layers_0_mlp_fc1") == text
    assert (told(strength), asked(strength)) == (said, asked_for)
    assert on(shrunk(strength, 0.5), "lora_te_x") == text / 2
    assert adds(strength) and not adds(shrunk(strength, 0.0)) and adds((0.0, 0.1))
