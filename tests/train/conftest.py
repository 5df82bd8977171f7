"""A small round to train: a random tiny base, shards of made-up latents and captions."""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from pipeline.artefacts.chain import CAPTIONS_FILE, INDEX_FILE
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.receipts import write_receipt
from pipeline.artefacts.records import CaptionRecord, LatentRecord, TextRecord, write_records
from pipeline.models.places import EMPTY_CAPTION
from pipeline.recipe import BuildRecipe
from pipeline.recipe.base import Base
from pipeline.recipe.running import Running
from pipeline.train.plan import RoundTraining
from pipeline.train.rate import WHOLE

PICTURES = 10
SIZES = ((16, 16), (24, 16))
"""(width, height) of buckets, pixels; a latent's sides are half of them."""
FEATURES = 32
WORDS = ("red", "green", "blue")

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Makers of random tiny pipelines."""
    source = Path(__file__).parent.parent / "models" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny_for_training", source)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sdxl(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A tiny SDXL base, a diffusers folder."""
    root = tmp_path_factory.mktemp("sdxl")
    tiny.make_sdxl_pipeline(root / "tokenizers").save_pretrained(root / "base")
    return Base(checkpoint=root / "base")


@pytest.fixture(scope="session")
def shards(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ (SD 1.5), captions/, latents/ and texts/ as the stages leave them."""
    root = tmp_path_factory.mktemp("shards")
    tiny.make_pipeline(root / "tokenizer").save_pretrained(root / "base")
    generator = torch.Generator().manual_seed(3)
    latents, texts = root / "latents", root / "texts"
    records, shown, names = [], [], [f"{n:032x}" for n in range(PICTURES)]
    for folder in (latents, texts):
        folder.mkdir()
    files = []
    for number, (width, height) in enumerate(SIZES):
        md5s = names[number::2]
        shape = (len(md5s), 4, height // 2, width // 2)
        tensors = {
            "mean": torch.randn(shape, generator=generator).half(),
            "logvar": torch.full(shape, -6.0).half(),
        }
        files.append(latents / f"latents-{number:05d}.safetensors")
        save_file(tensors, files[-1])
        records += [
            LatentRecord(
                md5=md5,
                shard=files[-1].name,
                row=row,
                width=width,
                height=height,
                original_width=width,
                original_height=height,
                crop_left=0,
                crop_top=0,
            )
            for row, md5 in enumerate(md5s)
        ]
    write_records(latents / INDEX_FILE, sorted(records, key=lambda record: record.md5))
    hidden = torch.randn(PICTURES + 1, 77, FEATURES, generator=generator).half()
    save_file({"hidden": hidden}, texts / "text-00000.safetensors")
    for row, md5 in enumerate([EMPTY_CAPTION, *names]):
        shown.append(TextRecord(md5=md5, shard="text-00000.safetensors", row=row))
    write_records(texts / INDEX_FILE, shown)
    captions = root / "captions"
    captions.mkdir()
    said = [
        CaptionRecord(md5=md5, caption=f"{WORDS[row % 3]} circle, {WORDS[row % 2]}", score=None)
        for row, md5 in enumerate(names)
    ]
    write_records(captions / CAPTIONS_FILE, said)
    write_receipt(captions, "caption", "captions", inputs={}, outputs=[captions / CAPTIONS_FILE])
    outputs = {latents: files, texts: [texts / "text-00000.safetensors"]}
    for folder, made in outputs.items():
        write_receipt(folder, "cache", folder.name, inputs={}, outputs=[*made, folder / INDEX_FILE])
    return root


@pytest.fixture
def plan(shards: Path, tmp_path: Path) -> TrainMaker:
    """plan("again", steps=8, train={...}, lora={...}, seed=…) -> a recipe and its round.

    The folder is tmp_path / the name; the fingerprint follows the settings, as rounds/ does it.
    """

    def make(name: str = "train", **asked: Any) -> tuple[BuildRecipe, RoundTraining]:
        recipe = BuildRecipe.model_validate(
            {
                "name": "coat",
                "base": {"checkpoint": str(shards / "base")},
                "dataset": {"recipe": "none.toml"},
                "rounds": {"count": 1},
                "lora": {"rank": 4, **asked.get("lora", {})},
                "train": {"batch_size": 2, "optimizer": "adamw", **asked.get("train", {})},
                "cache": asked.get("cache", {"masks": "alpha"}),
            }
        )
        settings = {
            "lora": recipe.lora.model_dump(mode="json"),
            "train": recipe.train.model_dump(mode="json", exclude=set(Running.model_fields)),
            "learning_rate": asked.get("learning_rate", 1e-3),
            "steps": asked.get("steps", 8),
            "texts": hashlib.sha256(b"captions").hexdigest(),
        }
        training = RoundTraining(
            folder=tmp_path / name,
            fingerprint=fingerprint(stage="train", **settings),
            settings=settings,
            round=1,
            seed=5,
            learning_rate=settings["learning_rate"],
            epochs=None,
            steps=settings["steps"],
            phase=WHOLE,
            snapshots=0,
            checkpoint=None,
            beside=(),
            pictures=tuple(f"{n:032x}" for n in range(PICTURES)),
            latents=shards / "latents",
            texts=shards / ("captions" if recipe.train.trains_text else "texts"),
            live=recipe.train.trains_text,
            stop=tmp_path / "STOP",
            force=False,
        )
        return recipe, replace(training, **asked.get("training", {}))

    return make


@pytest.fixture
def said() -> Callable[[UNet2DConditionModel], Tensor]:
    """What a UNet of this size predicts for two noises, and it is in training after it again."""

    @torch.no_grad()
    def prediction(unet: UNet2DConditionModel) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn(2, 4, 8, 8, generator=generator)
        hidden = torch.randn(2, 77, unet.config.cross_attention_dim, generator=generator)
        answer: Tensor = unet.eval()(latents, torch.tensor([100, 700]), hidden).sample
        unet.train()
        return answer

    return prediction
