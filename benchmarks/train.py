"""One training step of ours beside a bare diffusers and peft loop, at SD 1.5's true shape.

In one run.

    python benchmarks/train.py [--quick] [--json FILE] [--work DIR] [--kohya DIR]

Random weights, 256 pixels, batch 1, a LoRA of rank 8 on the attention layers, AdamW, float32 on
the CPU. The loops take turns, a step each, on one copy of the frozen weights. Figures:

step_ratio_bare    CPU seconds of our step over the bare loop's in the same turn, the median of the
                   turns: reading shards, drawing noise, checks and bookkeeping included
step_ratio_kohya   the same over kohya's networks (--kohya: a checkout of kohya-ss/sd-scripts, which
                   imports einops)
loss_difference_…  ours to theirs on the same weights, latents, noise and timesteps
samples_per_s      pictures a second of wall clock, ours
rss_mb             peak memory of this process, which holds all of the loops
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

# A script's own folder comes first, and there a benchmark is called what the room is.
sys.path.remove(str(Path(__file__).parent))

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipeline.artefacts.chain import INDEX_FILE
from pipeline.artefacts.receipts import write_receipt
from pipeline.artefacts.records import LatentRecord, TextRecord, write_records
from pipeline.recipe import BuildRecipe
from pipeline.train.plan import RoundTraining
from pipeline.train.rate import WHOLE
from pipeline.train.run import Run

PICTURES, PIXELS, TOKENS, FEATURES, RANK = 8, 256, 77, 768, 8
STEPS, QUICK_STEPS = 7, 3
"""Of each loop; the first of them warms up and does not count."""
TOKENIZER = Path(__file__).parents[1] / "demo" / "base" / "config" / "tokenizer"

Step = Callable[[], object]


def write_base(folder: Path) -> None:
    """A diffusers folder whose UNet is SD 1.5's by shape; the other networks are not looked at."""
    torch.manual_seed(0)
    StableDiffusionPipeline(
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=FEATURES),
        vae=AutoencoderKL(block_out_channels=(32,), latent_channels=4),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                hidden_size=FEATURES,
                intermediate_size=FEATURES,
                num_hidden_layers=1,
                num_attention_heads=12,
            )
        ),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            clip_sample=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def write_shards(root: Path) -> tuple[str, ...]:
    """root/latents and root/texts as the cache leaves them; returns the pictures' md5s."""
    generator = torch.Generator().manual_seed(1)
    side, names = PIXELS // 8, tuple(f"{n:032x}" for n in range(PICTURES))
    shape = (PICTURES, 4, side, side)
    mean = torch.randn(shape, generator=generator).half()
    hidden = torch.randn((PICTURES + 1, TOKENS, FEATURES), generator=generator).half()
    latents, texts = root / "latents", root / "texts"
    for folder in (latents, texts):
        folder.mkdir()
    save_file({"mean": mean, "logvar": torch.full(shape, -6.0).half()}, latents / "0.safetensors")
    save_file({"hidden": hidden}, texts / "0.safetensors")
    write_records(
        latents / INDEX_FILE,
        [
            LatentRecord(
                md5=md5,
                shard="0.safetensors",
                row=row,
                width=PIXELS,
                height=PIXELS,
                original_width=PIXELS,
                original_height=PIXELS,
                crop_left=0,
                crop_top=0,
            )
            for row, md5 in enumerate(names)
        ],
    )
    rows = (TextRecord(md5=m, shard="0.safetensors", row=r) for r, m in enumerate(("", *names)))
    write_records(texts / INDEX_FILE, rows)
    for folder in (latents, texts):
        made = [folder / "0.safetensors", folder / INDEX_FILE]
        write_receipt(folder, "cache", folder.name, inputs={}, outputs=made)
    return names


def new_run(root: Path, steps: int) -> Run:
    """Our training, at its first step."""
    write_base(root / "base")
    names = write_shards(root)
    recipe = BuildRecipe.model_validate(
        {
            "name": "bench",
            "base": {"checkpoint": str(root / "base")},
            "dataset": {"recipe": "none.toml"},
            "lora": {"rank": RANK},
            "train": {"optimizer": "adamw", "precision": "float32", "trackers": ()},
        }
    )
    training = RoundTraining(
        folder=root / "train",
        fingerprint="",
        settings={},
        round=1,
        seed=1,
        learning_rate=1e-4,
        epochs=None,
        steps=steps,
        phase=WHOLE,
        checkpoint=None,
        pictures=names,
        latents=root / "latents",
        texts=root / "texts",
        stop=root / "STOP",
        snapshots=0,
        beside=(),
        force=False,
    )
    return Run(recipe, training)


def frozen_of(run: Run) -> dict[str, Tensor]:
    """The UNet's own weights under its own names: the other loops share them."""
    return {
        name.replace(".base_layer", ""): value
        for name, value in run.network.unet.state_dict().items()
        if ".lora_" not in name
    }


@dataclass(frozen=True)
class ByHand:
    """A network that is trained in a loop which one writes by hand."""

    unet: Any
    """Called as diffusers' UNet is."""
    trained: list[nn.Parameter]


def bare(run: Run, weights: dict[str, Tensor]) -> ByHand:
    """diffusers' UNet over the same weights, with peft's LoRA on the same layers."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(run.network.unet.config)
    unet.load_state_dict(weights, assign=True)
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            target_modules=[t.name.removeprefix("unet.") for t in run.covered],
        )
    )
    unet.train()
    return ByHand(unet, [p for p in unet.parameters() if p.requires_grad])


def kohyas(checkout: Path, weights: dict[str, Tensor]) -> ByHand:
    """Their UNet over the same weights with their LoRA."""
    sys.path.insert(0, str(checkout))
    # Their utilities ask for libraries of pictures, of which a step uses none.
    utilities = ModuleType("library.utils")
    utilities.setup_logging = lambda *_, **__: None  # type: ignore[attr-defined]
    sys.modules["library.utils"] = utilities
    from library.original_unet import UNet2DConditionModel as TheirUNet
    from networks.lora import create_network

    with torch.device("meta"):
        unet = TheirUNet(64, 8, FEATURES, False, False)
    unet.load_state_dict(weights, assign=True)
    unet.requires_grad_(False)
    unet.set_use_sdpa(True)
    network = create_network(1.0, RANK, RANK, None, [], unet)
    network.apply_to([], unet, apply_text_encoder=False, apply_unet=True)
    unet.train()
    return ByHand(unet, list(network.parameters()))


def loop(run: Run, other: ByHand) -> Step:
    """What one writes by hand: everything in memory, noise drawn in place, the loss read."""
    optimizer = torch.optim.AdamW(other.trained, lr=1e-4)
    schedule: Any = run.noise_schedule
    side = PIXELS // 8
    latents, hidden = torch.randn(1, 4, side, side), torch.randn(1, TOKENS, FEATURES)

    def step() -> float:
        noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (1,))
        mixed = schedule.add_noise(latents, noise, timesteps)
        loss = functional.mse_loss(other.unet(mixed, timesteps, hidden).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def difference(run: Run, other: ByHand) -> float:
    """The most that our loss and theirs differ by on what our first steps are shown, by the same
    weights, noise and timesteps; both LoRAs are still nothing."""
    schedule: Any = run.noise_schedule
    apart = []
    for step in range(2):
        inputs = run.feed.at(step)
        mixed = schedule.add_noise(inputs.latents, inputs.noise, inputs.timesteps)
        with torch.no_grad():
            ours = float(run.sample_losses(inputs).mean())
            said = other.unet(mixed, inputs.timesteps, inputs.told.hidden).sample
        apart.append(abs(ours - float(functional.mse_loss(said, inputs.noise))))
    return max(apart)


def turns(loops: dict[str, Step], steps: int) -> dict[str, list[tuple[float, float]]]:
    """(CPU, wall) seconds of each loop's steps, the loops taking turns; the first warms up."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for number in range(steps):
        for name, step in loops.items():
            cpu, wall = time.process_time(), time.monotonic()
            step()
            seconds = time.process_time() - cpu, time.monotonic() - wall
            if number:
                took[name].append(seconds)
    return took


def main() -> None:
    """Measures, prints, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, not {STEPS}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the base is made, 4 GB")
    parser.add_argument("--kohya", type=Path, metavar="DIR", help="a checkout of sd-scripts")
    asked = parser.parse_args()
    steps = QUICK_STEPS if asked.quick else STEPS
    with tempfile.TemporaryDirectory(dir=asked.work) as folder:
        run = new_run(Path(folder), steps)
        weights = frozen_of(run)

        def ours() -> None:
            run.advance()
            run.look()

        others = {"bare": bare(run, weights)}
        if asked.kohya is not None:
            others["kohya"] = kohyas(asked.kohya, weights)
        apart = {f"loss_difference_{n}": difference(run, other) for n, other in others.items()}
        loops: dict[str, Step] = {"ours": ours}
        loops |= {name: loop(run, other) for name, other in others.items()}
        took = turns(loops, steps)
    figures = {}
    for name in others:
        pairs = zip(took["ours"], took[name], strict=True)
        ratios = [mine / its for (mine, _), (its, _) in pairs]
        figures[f"step_ratio_{name}"] = statistics.median(ratios)
    figures |= apart
    figures["samples_per_s"] = 1 / statistics.median(wall for _, wall in took["ours"])
    figures["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for name, steps_taken in took.items():
        print(f"{name}, CPU seconds a step: " + " ".join(f"{cpu:.2f}" for cpu, _ in steps_taken))
    for name, value in figures.items():
        print(f"{name:22} {value:.4g}")
    if asked.json is not None:
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
