"""Strengths: what texts mean, what a layer gets, and what is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from merge import Addend, MergeError, Strength, merge, parse_strength
from merge.blocks import BASE, BLOCKS, ORDERS, PRESETS, parse_factors
from merge.layers import Base, Layer
from merge.layout import look
from merge.strength import described, refuse_misfit, strength_at


def layer(block: str, network: str = "unet") -> Layer:
    return Layer(f"{network}.x", network, block, (4, 4), (), ())


def by_block(text: str, family: str = "sd15") -> dict[str, float]:
    """The factor of every block, the text encoders' as BASE."""
    strength = parse_strength(text, family)
    blocks = {block: strength_at(strength, layer(block)) for block in BLOCKS[family]}
    return blocks | {BASE: strength_at(strength, layer(BASE, "te1"))}


def reached(text: str, family: str = "sd15") -> set[str]:
    factors = by_block(text, family)
    assert set(factors.values()) <= {0.0, 1.0}
    return {block for block, factor in factors.items() if factor}


def test_a_number_is_everywhere() -> None:
    assert parse_strength("0.7") == 0.7
    assert parse_strength("-1e-3") == -0.001
    assert set(by_block("0.1").values()) == {0.1}


def test_networks() -> None:
    strength = parse_strength("unet=0.8, te=0.5")
    factors = [strength.of(layer("IN04")), *(strength.of(layer(BASE, te)) for te in ("te1", "te2"))]
    assert factors == [0.8, 0.5, 0.5]
    strength = parse_strength("te2=0.25")
    factors = [strength.of(layer("IN04")), *(strength.of(layer(BASE, te)) for te in ("te1", "te2"))]
    assert factors == [1.0, 1.0, 0.25]


def test_names_and_ranges() -> None:
    factors = by_block("IN04-07=0.25,OUT03-OUT06=0.5,mid=0,te=0.75")
    for block, factor in factors.items():
        number = int(block[-2:]) if block[-1].isdigit() else -1
        if block == "M00":
            assert factor == 0
        elif block == BASE:
            assert factor == 0.75
        elif block.startswith("IN"):
            assert factor == (0.25 if 4 <= number <= 7 else 1.0)
        else:
            assert factor == (0.5 if 3 <= number <= 6 else 1.0)
    assert reached("OUT11=1,rest=0") == {"OUT11"}
    assert by_block("rest=0.5,BASE=1") == {**dict.fromkeys(BLOCKS["sd15"], 0.5), BASE: 1.0}


SHALLOW_IN, DEEP_IN = {"IN01", "IN02", "IN04"}, {"IN05", "IN07", "IN08"}
DEEP_OUT = {"OUT03", "OUT04", "OUT05", "OUT06"}
SHALLOW_OUT = {"OUT07", "OUT08", "OUT09", "OUT10", "OUT11"}


@pytest.mark.parametrize(
    ("preset", "blocks"),
    [
        ("ALL", {BASE, *BLOCKS["sd15"]}),
        ("NONE", set()),
        ("INS", {BASE} | SHALLOW_IN),
        ("IND", {BASE} | DEEP_IN),
        ("INALL", {BASE} | SHALLOW_IN | DEEP_IN),
        ("MIDD", {BASE, "M00"} | DEEP_IN | DEEP_OUT),
        ("OUTD", {BASE} | DEEP_OUT),
        ("OUTS", {BASE} | SHALLOW_OUT),
        ("OUTALL", {BASE} | DEEP_OUT | SHALLOW_OUT),
        ("NIN", {BASE} | DEEP_OUT | SHALLOW_OUT),
        (
            "NCNF",
            {BASE, *BLOCKS["sd15"]} - {"OUT00", "OUT03", "OUT04", "OUT05", "OUT10", "OUT11"},
        ),
    ],
)
def test_presets(preset: str, blocks: set[str]) -> None:
    assert reached(preset) == blocks
    assert reached(preset.lower()) == blocks


def test_presets_of_sdxl_split_its_blocks_alike() -> None:
    shallow = {"IN04", "IN05"}, {"OUT03", "OUT04", "OUT05"}
    deep = {"IN07", "IN08"}, {"OUT00", "OUT01", "OUT02"}
    assert reached("INS", "sdxl") == {BASE} | shallow[0]
    assert reached("OUTS", "sdxl") == {BASE} | shallow[1]
    assert reached("MIDD", "sdxl") == {BASE, "M00"} | deep[0] | deep[1]
    assert reached("OUTALL", "sdxl") == {BASE} | deep[1] | shallow[1]
    assert reached("ALL", "sdxl") == {BASE, *BLOCKS["sdxl"]}
    with pytest.raises(MergeError, match=r"NCNF is known for SD 1\.5 only"):
        parse_strength("NCNF", "sdxl")


def test_every_preset_has_as_many_digits_as_an_order() -> None:
    for family, presets in PRESETS.items():
        for digits in presets.values():
            assert set(ORDERS[len(digits)]) <= {BASE, *BLOCKS[family]}


@pytest.mark.parametrize(
    ("count", "family"), [(12, "sdxl"), (17, "sd15"), (20, "sdxl"), (26, "sd15")]
)
def test_lists(count: int, family: str) -> None:
    """Each number goes to its block; what a short list does not count gets 0."""
    numbers = [n / 32 for n in range(1, count + 1)]
    factors = by_block(",".join(map(str, numbers)), family)
    assert len(set(ORDERS[count])) == count
    for block, factor in factors.items():
        there = block in ORDERS[count]
        assert factor == (numbers[ORDERS[count].index(block)] if there else 0.0)


def test_orders_are_as_the_extension_counts() -> None:
    seventeen = "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06"
    assert ORDERS[17] == (*seventeen.split(), "OUT07", "OUT08", "OUT09", "OUT10", "OUT11")
    twelve = "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05"
    assert ORDERS[12] == tuple(twelve.split())
    for count, last in ((20, 8), (26, 11)):
        assert ORDERS[count][1] == "IN00" and ORDERS[count][last + 2] == "M00"
        assert ORDERS[count][-1] == f"OUT{last:02d}"


@pytest.mark.parametrize(("shape", "short", "long"), [("sd15", 17, 26), ("sdxl", 12, 20)])
def test_orders_are_those_of_a_models_own_blocks(
    tiny: Callable[[str], Any], shape: str, short: int, long: int
) -> None:
    """The short lists count the blocks with attention, the long ones all, in the model's order."""
    layers = look(tiny(shape).file).layers.values()
    attention = {layer.block for layer in layers if ".attentions." in layer.name}
    assert attention == set(ORDERS[short][1:])
    assert {layer.block for layer in layers} == set(ORDERS[long])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "'x' is not a number and not a preset"),
        ("", "not a number"),
        ("1,2", "has 2 numbers"),
        ("1" + ",1" * 15, "has 16 numbers.*12, 17, 20, 26"),
        ("1" + ",1" * 15 + ",R", "'R' in .* is not a number"),
        ("nan", "not a finite number"),
        ("1e999", "not a finite number"),
        ("unet=inf", "not a finite number"),
        ("IN03=nan", "not a finite number"),
        ("IN12=1", "'IN12' is not a range of blocks. There are BASE"),
        ("IN09-12=1", "is not a range"),
        ("IN07-04=1", "is not a range"),
        ("IN04-OUT07=1", "is not a range"),
        ("M01=1", "'M01' is not a block"),
        ("vae=1", "'vae' is not a block"),
        ("te=1,te2=0", "te2 is given twice"),
        ("IN04=1,IN03-05=2", "IN04 is given twice"),
        ("rest=1,IN04=1,rest=0", "rest is given twice"),
        ("unet=1,0.5", "is not NAME=NUMBER"),
        ("IN04=", "is not NAME=NUMBER"),
    ],
)
def test_refused(text: str, said: str) -> None:
    with pytest.raises(MergeError, match=said) as refused:
        parse_strength(text)
    assert refused.value.exit_code == 2


def test_refused_in_python() -> None:
    with pytest.raises(MergeError, match="no block IN99"):
        Strength(blocks={"IN99": 1.0})
    with pytest.raises(MergeError, match="not finite"):
        Strength(unet=math.nan)
    with pytest.raises(MergeError, match="not finite"):
        Strength(blocks={"IN01": math.inf})


def base_of(family: str, blocks: tuple[str, ...]) -> Base:
    layers = {block: layer(block) for block in blocks}
    return Base(Path("base.safetensors"), family, False, (), layers, {})


def test_block_weights_of_the_other_family_are_refused() -> None:
    sd15, sdxl = base_of("sd15", BLOCKS["sd15"]), base_of("sdxl", BLOCKS["sdxl"])
    for text, right, wrong in (
        ("1" + ",1" * 16, sd15, sdxl),
        ("1" + ",1" * 11, sdxl, sd15),
        ("1" + ",1" * 19, sdxl, sd15),
        ("OUTS", sd15, sdxl),
    ):
        refuse_misfit(parse_strength(text), right)
        with pytest.raises(MergeError, match=r"give 1[27] or 2[06] numbers"):
            refuse_misfit(parse_strength(text), wrong)
    for text in ("0.5", "unet=1,te=0", "ALL", "NONE", "IN04-08=0.5,rest=0"):
        refuse_misfit(parse_strength(text), sd15)
        refuse_misfit(parse_strength(text), sdxl)
    refuse_misfit(parse_strength("OUTS", "sdxl"), sdxl)
    with pytest.raises(MergeError, match=r"no block OUT09, OUT10\. It has IN00, .*, OUT08"):
        refuse_misfit(parse_strength("OUT08-10=1"), sdxl)


numbers = st.floats(-4, 4).map(lambda x: round(x, 3))
strengths = st.builds(
    Strength,
    unet=numbers,
    te1=numbers,
    te2=numbers,
    blocks=st.dictionaries(st.sampled_from((BASE, *BLOCKS["sd15"])), numbers, max_size=8),
    rest=numbers,
)
layers = st.one_of(
    st.sampled_from(BLOCKS["sd15"]).map(layer),
    st.sampled_from(["te1", "te2"]).map(lambda network: layer(BASE, network)),
)


@given(strengths, st.one_of(numbers, strengths), layers)
def test_times_is_the_product_on_every_layer(
    one: Strength, other: float | Strength, where: Layer
) -> None:
    together = one.times(other).of(where)
    assert together == pytest.approx(one.of(where) * strength_at(other, where), rel=1e-12)


@given(strengths, layers)
def test_described_says_all_of_it_exactly(strength: Strength, where: Layer) -> None:
    said = json.loads(json.dumps(described(strength)))
    assert Strength(**said).of(where) == strength.of(where)
    assert described(0.1) == 0.1


def test_factors_tell_whether_the_rest_was_said() -> None:
    assert parse_factors("IN04=0.3").rest is None
    assert parse_factors("IN04=0.3,rest=1").rest == 1.0
    listed = parse_factors(",".join("1" * 25), orders={25: BLOCKS["sd15"]})
    assert (len(listed.named), listed.family) == (25, "sd15")


def test_a_merge_weighs_each_block(base, lora: Callable[..., Path], tmp_path: Path) -> None:
    """Weights that the strength leaves alone keep their bytes, others get their share."""
    file, out = lora(base), tmp_path / "out.safetensors"
    merge(base.file, [Addend(file, 1.0)], out, dtype="float32")
    full = load_file(out)
    strength = parse_strength("unet=0.5,te=0.25,IN00-03=0,M00=2")
    report = merge(base.file, [Addend(file, strength)], out, dtype="float32")
    origin, weighed = load_file(base.file), load_file(out)
    seen = set()
    for row in report.matched:
        if row.key.startswith("cond_stage_model."):
            factor = 0.25
        elif "input_blocks." in row.key or "time_embed" in row.key:
            factor = 0.0
        else:
            factor = 1.0 if "middle_block." in row.key else 0.5
        seen.add(factor)
        before = origin[row.key].float()
        if factor == 0.0:
            assert weighed[row.key].equal(before)
        moved = weighed[row.key] - before
        assert torch.allclose(moved, factor * (full[row.key] - before), atol=1e-6), row.key
    assert seen == {0.0, 0.25, 0.5, 1.0}
