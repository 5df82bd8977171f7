"""Singular values from thin factors and from differences, against torch's of the whole matrix."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge import MergeError
from merge.thin import Cut, norm_of_factors, of_factors, of_matrix, total_share

SIZES = st.integers(1, 12)


@settings(max_examples=60, deadline=None)
@given(
    out=SIZES,
    inner=SIZES,
    rank=SIZES,
    scale=st.floats(-3, 3),
    seed=st.integers(0, 2**16),
)
def test_thin_values_equal_those_of_the_product(out, inner, rank, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(out, rank, generator=generator)
    down = torch.randn(rank, inner, generator=generator)
    product = scale * (up.double() @ down.double())
    spectrum = of_factors(up, down, scale)
    wanted = torch.linalg.svdvals(product)[: min(out, inner, rank)]
    assert torch.allclose(spectrum.values, wanted, rtol=1e-5, atol=1e-10)
    kept_up, kept_down = spectrum.factors(len(wanted))
    assert torch.allclose(kept_up @ kept_down, product, atol=1e-10)
    assert norm_of_factors(up, down, scale) == pytest.approx(float(product.norm()), abs=1e-5)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_factors_are_the_best_of_their_rank(count):
    """Eckart and Young: what is lost is exactly the values left out."""
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(9, 5, generator=generator), torch.randn(5, 7, generator=generator)
    spectrum = of_factors(up, down, 0.5)
    kept_up, kept_down = spectrum.factors(count)
    assert kept_up.shape == (9, count) and kept_down.shape == (count, 7)
    values = torch.linalg.svdvals(0.5 * up.double() @ down.double())
    lost = (0.5 * up.double() @ down.double() - kept_up @ kept_down).norm()
    assert float(lost) == pytest.approx(float(values[count:].norm()), abs=1e-9)
    wanted = math.sqrt(float(values[:count].square().sum() / values.square().sum()))
    assert spectrum.share(count) == pytest.approx(wanted)
    assert torch.allclose(kept_up.norm(dim=0), kept_down.norm(dim=1))


def test_what_a_cut_keeps_by_hand():
    values = torch.tensor([4.0, 2.0, 1.0, 0.5])  # squares 16, 4, 1, 0.25: 21.25 together
    energy = 21.25
    assert Cut(rank=2).count(values, energy) == 2
    assert Cut(rank=9).count(values, energy) == 4
    assert Cut(energy=16 / 21.25).count(values, energy) == 1
    assert Cut(energy=16.1 / 21.25).count(values, energy) == 2
    assert Cut(energy=1.0).count(values, energy) == 4
    assert Cut(energy=0.99, rank=2).count(values, energy) == 2
    assert Cut(ratio=2.0).count(values, energy) == 2
    assert Cut(ratio=1.0).count(values, energy) == 1
    assert Cut(ratio=100.0, rank=3).count(values, energy) == 3
    nothing = torch.zeros(3)
    assert [Cut(energy=0.9).count(nothing, 0.0), Cut(ratio=5.0).count(nothing, 0.0)] == [1, 1]


def test_energy_is_not_lost_to_the_rounding_of_its_sum():
    spectrum = of_factors(torch.eye(7), torch.eye(7), 1 / 3)
    assert Cut(energy=1.0).count(spectrum.values, spectrum.energy) == 7
    assert spectrum.share(7) == 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "Say what to keep"),
        ({"energy": 0.9, "ratio": 5.0}, "exclude each other"),
        ({"rank": 0}, "below 1"),
        ({"energy": 0.0}, "not in"),
        ({"energy": 1.5}, "not in"),
        ({"energy": math.nan}, "not in"),
        ({"ratio": 0.5}, "at least 1"),
        ({"ratio": math.inf}, "at least 1"),
    ],
)
def test_cuts_that_are_none(settings, said):
    with pytest.raises(MergeError, match=said):
        Cut(**settings)


@pytest.mark.parametrize("shape", [(240, 320), (320, 240)])
@pytest.mark.parametrize("cut", [Cut(rank=8), Cut(rank=200), Cut(energy=0.5), Cut(ratio=3.0)])
def test_a_difference_keeps_nearly_the_best_possible_share(shape, cut):
    """A few directions in noise, as a training leaves; the noise alone is what costs most."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(shape, generator=generator)
    few = torch.randn(shape[0], 6, generator=generator) @ torch.randn(
        6, shape[1], generator=generator
    )
    for matrix, loss in ((few * 0.5 + noise, 2e-4), (noise, 5e-3)):
        whole = torch.linalg.svdvals(matrix.double())
        energy = float(whole.square().sum())
        spectrum = of_matrix(matrix, cut)
        count = cut.count(spectrum.values, spectrum.energy)
        assert spectrum.energy == pytest.approx(energy)
        assert abs(count - cut.count(whole, energy)) <= 1
        best = math.sqrt(float(whole[:count].square().sum()) / energy)
        assert best * (1 - loss) <= spectrum.share(count) <= best + 1e-6
        # The share is true of the factors too, not of the values alone.
        up, down = spectrum.factors(count)
        kept = math.sqrt(max(0.0, 1 - float((matrix - up @ down).norm() ** 2) / energy))
        assert kept == pytest.approx(spectrum.share(count), abs=1e-5)


def test_a_difference_of_low_rank_is_found_exactly():
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(200, 5, generator=generator) @ torch.randn(5, 300, generator=generator)
    for cut in (Cut(rank=8), Cut(energy=0.9999999), Cut(rank=150)):
        spectrum = of_matrix(matrix, cut)
        count = cut.count(spectrum.values, spectrum.energy)
        up, down = spectrum.factors(count)
        assert torch.allclose((up @ down).float(), matrix, atol=1e-4)
        assert count == 5 or not cut.energy


def test_the_same_difference_gives_the_same_factors():
    matrix = torch.randn(200, 300, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    one = of_matrix(matrix, Cut(rank=4))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    two = of_matrix(matrix, Cut(rank=4))
    assert all(torch.equal(a, b) for a, b in zip(one.factors(4), two.factors(4), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_difference_at_all():
    spectrum = of_matrix(torch.zeros(3, 4), Cut(energy=0.9))
    up, down = spectrum.factors(1)
    assert up.shape == (3, 1) and down.shape == (1, 4) and not up.any() and not down.any()
    assert spectrum.share(1) == 1.0


def test_shares_of_layers_together():
    """Energies 9 and 16, of which the shares 1 and 0.5 keep 9 and 4."""
    assert total_share([(1.0, 9.0), (0.5, 16.0)]) == pytest.approx(math.sqrt(13 / 25))
    assert total_share([(1.0, 0.0)]) == 1.0
