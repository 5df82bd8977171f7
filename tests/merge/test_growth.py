"""What LoRAs add to a chain, against whole matrices worked here."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge.growth import effective_rank, growth, intruders
from pipeline.artefacts.files import files_of
from urushi.recipes import tiny_base

NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2"
KEY = "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.2.weight"
BASE = tiny_base() / "tiny.safetensors"


def write(path: Path, up: Tensor, down: Tensor, alpha: float) -> Path:
    save_file(
        {
            f"{NAME}.lora_up.weight": up.contiguous(),
            f"{NAME}.lora_down.weight": down.contiguous(),
            f"{NAME}.alpha": torch.tensor(alpha),
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def weight() -> Tensor:
    assert files_of(BASE) == [BASE]
    return load_file(BASE)[KEY].float()


def test_norms_cosines_and_ranks_are_those_of_the_products(tmp_path: Path, weight: Tensor) -> None:
    rng = torch.Generator().manual_seed(1)
    out, inner = weight.shape
    ups = [torch.randn(out, 3, generator=rng) for _ in range(3)]
    downs = [torch.randn(3, inner, generator=rng) for _ in range(3)]
    strengths = (0.5, 1.0, 0.25)
    loras = [
        (write(tmp_path / f"{n}.safetensors", up, down, 6.0), s)
        for n, (up, down, s) in enumerate(zip(ups, downs, strengths, strict=True))
    ]
    deltas = [2.0 * s * (u @ d) for u, d, s in zip(ups, downs, strengths, strict=True)]
    grown = growth(loras)
    (layer,) = grown.layers
    assert layer.module == NAME
    assert layer.last == pytest.approx(float(deltas[2].norm()), rel=1e-5)
    assert layer.total == pytest.approx(float(sum(deltas).norm()), rel=1e-5)  # type: ignore[union-attr]
    for cosine, delta in zip(grown.cosines, deltas, strict=False):
        exact = float((delta * deltas[2]).sum() / delta.norm() / deltas[2].norm())
        assert cosine == pytest.approx(exact, abs=1e-5)
    values = torch.linalg.svdvals(torch.stack(deltas).sum(dim=0))[:9]
    assert layer.effective_rank == pytest.approx(effective_rank(values), rel=1e-4)
    assert 3 < layer.effective_rank < 9


def test_a_round_that_goes_on_and_one_that_takes_back(tmp_path: Path, weight: Tensor) -> None:
    up, down = torch.ones(weight.shape[0], 1), torch.ones(1, weight.shape[1])
    first = write(tmp_path / "a.safetensors", up, down, 1.0)
    back = write(tmp_path / "b.safetensors", -up, down, 1.0)
    assert growth([(first, 1.0), (first, 0.3)]).cosines == pytest.approx((1.0,))
    taken = growth([(first, 1.0), (back, 1.0)])
    assert taken.cosines == pytest.approx((-1.0,))
    assert taken.layers[0].total == pytest.approx(0.0, abs=1e-9)


def test_effective_rank_of_known_spectra() -> None:
    assert effective_rank(torch.ones(5)) == pytest.approx(5.0)
    assert effective_rank(torch.tensor([3.0, 0.0])) == pytest.approx(1.0)
    halves = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(halves)
    assert effective_rank(torch.zeros(3)) == 0.0


def test_a_large_direction_from_outside_is_an_intruder(tmp_path: Path, weight: Tensor) -> None:
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    inside = write(
        tmp_path / "in.safetensors", left[:, :1] * values[0], right[:1], 1.0
    )  # The leading direction, twice as strong.
    outside = write(tmp_path / "out.safetensors", left[:, -1:] * 3 * values[0], right[-1:], 1.0)
    assert intruders(BASE, [(inside, 1.0)], [NAME]) == {NAME: 0}
    assert intruders(BASE, [(outside, 1.0)], [NAME]) == {NAME: 1}
    assert intruders(BASE, [(outside, 0.0)], [NAME]) == {NAME: 0}
