import hashlib
import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from flows.work import PartRun
from pipeline.artefacts.job import Outcome
from pipeline.artefacts.records import CaptionRecord, ImageRecord, read_records
from pipeline.recipe import load_build, load_dataset
from urushi.demo import PORT, _booru, _job, phases
from urushi.recipes import shipped, tiny_base

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def test_it_runs_the_recipes_that_ship_with_this_machines_addresses(tmp_path: Path) -> None:
    job = _job(tmp_path / "workspace", "http://127.0.0.1:1234")
    assert job.recipe_path == tmp_path / "workspace" / "recipes" / "tiny" / "build.toml"
    source = load_build(shipped("tiny") / "build.toml")
    # In a checkout both name the same files, so that nothing but the dataset's place differs.
    assert job.recipe.base == source.base
    assert job.recipe.model_copy(update={"dataset": source.dataset}) == source
    (_, dataset), original = job.datasets[0], load_dataset(shipped("tiny") / "pictures.toml")
    assert dataset.download is not None and original.download is not None
    assert dataset.download.host == "http://127.0.0.1:1234"
    assert original.download.host == f"http://127.0.0.1:{PORT}"
    assert dataset.caption == original.caption


def test_the_tiny_base_ships_with_its_configurations() -> None:
    recipe = load_build(shipped("tiny") / "build.toml")
    assert recipe.base.checkpoint.parent == tiny_base()
    assert recipe.base.checkpoint.is_file()
    assert recipe.base.config is not None and recipe.base.config.is_dir()
    assert recipe.base.checkpoint.stat().st_size <= 12_000_000


def test_a_taken_port_is_stepped_around() -> None:
    with socket.socket() as other:
        with suppress(OSError):  # Taken already: then by somebody else, which will do as well.
            other.bind(("127.0.0.1", PORT))
            other.listen()
        with _booru() as url:
            assert url != f"http://127.0.0.1:{PORT}"
            posts = requests.get(
                f"{url}/posts.json?limit=3", headers={"User-Agent": "urushi test"}, timeout=30
            )
    assert len(posts.json()) == 3


def test_phases_tell_what_was_done_before() -> None:
    runs = [
        PartRun("download", Outcome("download", True, ""), 0.04),
        PartRun("round-01-train", Outcome("train", False, ""), 61.27),
    ]
    assert [line.split() for line in phases(runs).splitlines()] == [
        ["part", "seconds"],
        ["download", "0.0", "already", "done"],
        ["round-01-train", "61.3"],
    ]


@pytest.mark.drill
@pytest.mark.prefect
def test_the_whole_job(tmp_path: Path) -> None:
    """`urushi demo` from nothing, and what is promised of it; then again, which does nothing."""
    workspace = tmp_path / "workspace"
    words = [Path(sys.executable).with_name("urushi"), "demo", "--workspace", workspace]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    ended = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    build = workspace / "builds" / "maki_e"
    ledger = json.loads((build / "build.json").read_text())
    accepted = [row for row in ledger["rounds"] if row["strength"] > 0]
    assert len(accepted) >= 3
    losses = [ledger["heldout_origin"], *(row["heldout_after"] for row in accepted)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.5 * losses[0]
    rates = [row["learning_rate"] for row in ledger["rounds"]]
    assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0]
    for name in ("final.safetensors", "final.lora.safetensors", "report.html"):
        assert str(build / name) in ended.stdout

    dataset = workspace / "datasets" / "maki_e"
    images = read_records(dataset / "images" / "images.jsonl", ImageRecord)
    assert images and {image.rating for image in images} == {"general"}
    for image in images:
        content = (dataset / image.path).read_bytes()
        assert hashlib.md5(content).hexdigest() == image.md5 == Path(image.path).stem
    (captions,) = dataset.glob("captions/*/captions.jsonl")
    artists = {name.replace("_", " ") for image in images for name in image.tags["artist"]}
    assert artists
    for caption in read_records(captions, CaptionRecord):
        assert not artists & set(caption.caption.split(", "))

    check_the_arithmetic(build, ledger)
    check_that_diffusers_reads_it(build)

    final = (build / "final.safetensors").stat()
    again = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert again.returncode == 0
    assert "is finished. Nothing to do." in again.stderr
    assert "Prefect" not in again.stderr
    assert (build / "final.safetensors").stat() == final


def unet_of(path: Path) -> "UNet2DConditionModel":
    """A checkpoint's UNet by diffusers' own reader, in the file's dtype."""
    import torch
    from diffusers import UNet2DConditionModel

    unet: UNet2DConditionModel = UNet2DConditionModel.from_single_file(
        str(path), config=str(tiny_base() / "config"), subfolder="unet", torch_dtype=torch.float16
    )
    return unet


def check_the_arithmetic(build: Path, ledger: dict[str, Any]) -> None:
    """origin + sum of final strength x alpha / rank x up x down, by diffusers' names."""
    import torch
    from safetensors.torch import load_file

    origin = unet_of(tiny_base() / "tiny.safetensors").state_dict()
    final = unet_of(build / "final.safetensors").state_dict()
    totals = {name: weight.float() for name, weight in origin.items()}
    for row in ledger["rounds"]:
        factors = load_file(build / row["lora"])
        used = 0
        for name in totals:
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            if name.endswith(".weight") and f"{key}.alpha" in factors:
                up, down = factors[f"{key}.lora_up.weight"], factors[f"{key}.lora_down.weight"]
                scale = row["final_strength"] * float(factors[f"{key}.alpha"]) / down.shape[0]
                delta = scale * (up.flatten(1) @ down.flatten(1))
                totals[name] += delta.reshape(totals[name].shape)
                used += 1
        assert used == len(factors) // 3 > 100
    equal = elements = 0
    for name, total in totals.items():
        wanted, got = total.half(), final[name]
        # Neighbouring halves of one sign have neighbouring bit patterns.
        apart = (wanted.view(torch.int16).int() - got.view(torch.int16).int()).abs()
        assert bool(((apart <= 1) | (wanted == got)).all()), name
        equal += int((wanted == got).sum())
        elements += got.numel()
    assert equal >= 0.999 * elements


def check_that_diffusers_reads_it(build: Path) -> None:
    """final.safetensors samples; round 1's LoRA on the origin is round 1's checkpoint."""
    import numpy as np
    import torch
    from diffusers import StableDiffusionPipeline

    def pipeline(path: Path) -> StableDiffusionPipeline:
        loaded = StableDiffusionPipeline.from_single_file(
            str(path), config=str(tiny_base() / "config"), local_files_only=True
        )
        loaded.set_progress_bar_config(disable=True)
        return loaded

    picture = pipeline(build / "final.safetensors")(
        "1figure, red star, lacquer background",
        width=64,
        height=64,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert picture.size == (64, 64) and np.asarray(picture).std() > 5

    first = build / "rounds" / "01"
    strength = json.loads((build / "build.json").read_text())["rounds"][0]["strength"]
    adapted, merged = (
        pipeline(tiny_base() / "tiny.safetensors"),
        pipeline(first / "checkpoint.safetensors"),
    )
    adapted.load_lora_weights(str(first), weight_name="lora.safetensors", adapter_name="round")
    adapted.set_adapters("round", strength)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    hidden = torch.randn(2, 77, 64, generator=generator)
    with torch.no_grad():
        one, two = (
            p.unet(latents, torch.tensor([50, 800]), hidden).sample for p in (adapted, merged)
        )
        plain = pipeline(tiny_base() / "tiny.safetensors").unet(
            latents, torch.tensor([50, 800]), hidden
        )
    assert float((plain.sample - two).abs().max()) > 0.1
    torch.testing.assert_close(one, two, atol=2e-2, rtol=2e-2)
