"""The tiny Stable Diffusion, tuned on drawings by the program itself: one build for each policy.

Every build has the same pictures, steps and rank; what differs is how often a LoRA is merged, how
the next one starts and how the rate falls. Strength 1, no gate: the loss after the last round, on
held-out pictures that nothing was chosen on.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demo.drawings import draw, lacquer_scene
from pipeline.artefacts.job import load_job
from pipeline.artefacts.ledger import read_ledger
from pipeline.progress import Silent
from pipeline.stages import DATA_STAGES

BASE = Path(__file__).resolve().parent.parent.parent / "demo" / "base"
TEXT = """
name = "{name}"
seed = {seed}

[base]
checkpoint = "{base}/tiny.safetensors"
config = "{base}/config"

[dataset]
recipe = "drawings.toml"

[resize]
resolution = 64
step = 16
min_side = 48
max_side = 96

[lora]
rank = 2
conv_rank = 2

[train]
batch_size = 8
optimizer = "adamw"
betas = [0.9, 0.99]
warmup_steps = {warmup}
caption_dropout = 0.1
min_rate = 0.05

[rounds]
count = {count}
steps = {steps}
learning_rate = {rate}
start = "{start}"
envelope = "{envelope}"
strength = 1.0
gate = "always"
held_out = 0.4
held_out_timesteps = 4
"""


@dataclass(frozen=True)
class Policy:
    """How the steps are divided into rounds. `shares` add up to 1."""

    start: str
    shares: tuple[float, ...] = (1.0,)
    envelope: str = "build"
    rate: float = 1.0
    """Times the rate that is best for one fresh LoRA."""


POLICIES: dict[str, Policy] = {
    "single": Policy("fresh"),
    "carried, 2, cut at 1/4": Policy("carried", (0.25, 0.75)),
    "kept, 2, cut at 1/4": Policy("kept", (0.25, 0.75)),
    "fresh, 2, cut at 1/4": Policy("fresh", (0.25, 0.75)),
    "single, gradient": Policy("gradient"),
    "single, pissa": Policy("pissa", rate=0.5),
    "fresh, 4 even": Policy("fresh", (0.25,) * 4),
}


def prepare(folder: Path, pictures: int) -> None:
    """Draws the pictures and does everything that comes before the rounds."""
    shown = folder / "pictures"
    shown.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(77)
    for number in range(pictures):
        scene = lacquer_scene(rng)
        draw(scene, 64, 64).save(shown / f"{number:03d}.png")
        tags = ", ".join(scene.general_tags())
        (shown / f"{number:03d}.txt").write_text(tags, encoding="utf-8")
    (folder / "drawings.toml").write_text('name = "drawings"\n[folder]\npath = "pictures"\n')
    job = load_job(_recipe(folder, "data", POLICIES["single"], 0, 8, 1e-3), folder / "workspace")
    for stage in DATA_STAGES:
        stage.run(job, Silent())


def final_loss(folder: Path, name: str, seed: int, steps: int, rate: float) -> float:
    """Runs the build of a policy; the held-out loss after its last round."""
    from pipeline.rounds.stage import parts  # The whole program, which no other problem waits for.

    build = f"{''.join(c if c.isalnum() else '-' for c in name)}-{seed}-{steps}-{rate:g}"
    recipe = _recipe(folder, build, POLICIES[name], seed, steps, rate)
    job = load_job(recipe, folder / "workspace")
    for part in parts(job):
        part.run(job, Silent())
    return read_ledger(job.folder.ledger).rounds[-1].heldout_after


def _recipe(folder: Path, name: str, policy: Policy, seed: int, steps: int, rate: float) -> Path:
    lengths = [max(1, round(steps * share)) for share in policy.shares]
    path = folder / f"{name}.toml"
    path.write_text(
        TEXT.format(
            name=name.lower().replace(".", "-"),
            seed=seed,
            base=BASE.as_posix(),
            warmup=min(10, min(lengths) // 2),
            count=len(lengths),
            steps=lengths,
            rate=rate * policy.rate,
            start=policy.start,
            envelope=policy.envelope,
        ),
        encoding="utf-8",
    )
    return path
