from pathlib import Path
from typing import Any

import pytest

from pipeline.artefacts.workspace import BuildFolder
from pipeline.preview.card import card, escaped, write_card
from pipeline.preview.data import DatasetFacts
from pipeline.recipe.base import Base
from pipeline.recipe.build import BuildRecipe, DatasetSource
from pipeline.recipe.card import Card
from pipeline.recipe.preview import Preview

FACTS = DatasetFacts(
    name="pictures",
    asked="arisu_(x)",
    pictures=1_000,
    sites=(("danbooru", 990), ("e621", 10)),
    ratings=(("general", 1_000),),
    left_out=(("gone: HTTP 404", 31), ("hidden", 4)),
    excluded=("2 artists",),
    artists=(("kin_pun", 700), ("other", 297)),
    unnamed=3,
    tags=(("arisu (x)", 990), ("masterpiece", 900), ("halo", 805), ("solo", 450)),
    different_tags=42,
    lengths=(1, 4.5, 9),
    quality=(("masterpiece", 900),),
    buckets=(("64x96", 1_000),),
)


def recipe(**said: Any) -> BuildRecipe:
    return BuildRecipe(
        name="coat",
        base=Base(checkpoint=Path("/home/someone/models/base.safetensors")),
        dataset=DatasetSource(recipe=Path("/home/someone/pictures.toml")),
        rounds={"epochs": [1]},
        preview=Preview(
            prompts=("arisu (x), [smile], \\(kept\\)", "a `quoted` one"), negative="bad"
        ),
        card=Card(**said),
    )


@pytest.fixture
def ledger(make: Any) -> Any:
    rows = (make.row(1), make.row(2, strength=0, decision="rejected"))
    origin = "/home/someone/models/base.safetensors"
    return make.ledger(*rows, final="final.safetensors", final_sha256="cd" * 32, origin=origin)


def test_lineage_data_prompts_and_settings_are_there(ledger: Any) -> None:
    text = card(ledger, recipe(), "sd15", [FACTS])
    for words in (
        "license: other\n",
        "- stable-diffusion\n",
        "Built with urushi from `base.safetensors` in 1 round:",
        "went from 1.5000 to 0.7500.",
        "BLAKE3 `" + "ab" * 32,
        "| 1 | pictures | 8 | 101 | 1.55e-3 | 0.81 | `0101010101010101…` |",
        "| 2 | pictures | 8 | 102 | 7.75e-4 | left out |",
        "sha256 of `final.safetensors`: `" + "cd" * 32,
        "**pictures**: 1,000 pictures.",
        "- Sites: danbooru 990, e621 10\n",
        "- Ratings: general 1,000\n",
        "- Excluded by the recipe: 2 artists\n",
        "- Posts found and not taken: 35",
        "arisu \\(x\\), \\[smile\\], \\(kept\\)\n",
        "| Sizes trained at | 64 × 96 |",
        "| Prediction type | epsilon (noise) |",
        "| Clip skip | 1 (none) |",
        # Nearly every caption has them; the quality word is not one of them.
        "| Trigger words | `arisu \\(x\\)`, `halo` |",
        "| Quality words | `masterpiece` |",
        "| Negative prompt | `bad` |",
        "Judged on 20 pictures kept out of training",
    ):
        assert words in text, words
    assert "/home" not in text
    assert "kin_pun" not in text


def test_what_the_recipe_says_of_licence_base_and_words(ledger: Any) -> None:
    said = {
        "licence": "faipl-1.0-sd",
        "base_model": "owner/name",
        "trigger_words": ("maki-e",),
        "note": "Gold on *black*.\n",
    }
    text = card(ledger, recipe(**said), "sdxl", [FACTS])
    head = text.split("---\n")[1]
    assert "license: faipl-1.0-sd\n" in head
    assert "base_model: owner/name\n" in head
    assert "- stable-diffusion-xl\n" in head
    assert "\n\nGold on *black*.\n\n" in text
    assert "| Trigger words | `maki-e` |" in text
    assert "| Clip skip | 2, as every SDXL |" in text


@pytest.mark.parametrize(
    ("licence", "line"),
    [("no", 'license: "no"'), ('a: "b"', 'license: "a: \\"b\\""'), ("mit", "license: mit")],
)
def test_a_licence_is_text_to_any_reader_of_yaml(licence: str, line: str, ledger: Any) -> None:
    assert f"\n{line}\n" in card(ledger, recipe(licence=licence), "sd15", [])


def test_it_is_written_beside_the_final_checkpoint_once(ledger: Any, tmp_path: Path) -> None:
    folder = BuildFolder(tmp_path)
    path = write_card(folder, ledger, recipe(), "sd15", [FACTS])
    assert path == folder.final.with_name("README.md")
    inode, text = path.stat().st_ino, path.read_text()
    write_card(folder, ledger, recipe(), "sd15", [FACTS])
    assert (path.stat().st_ino, path.read_text()) == (inode, text)


def test_prompts_are_escaped_once() -> None:
    assert escaped("a (b) [c]") == r"a \(b\) \[c\]"
    assert escaped(escaped("a (b)")) == r"a \(b\)"
