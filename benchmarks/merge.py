"""Merging at true size: random checkpoints of SD 1.5's and SDXL's shapes, beside `cp` of the file.

    python benchmarks/merge.py [--quick] [--json FILE] [--work FOLDER] [--kohya SD_SCRIPTS]

Prints wall and CPU seconds and peak RSS of whole processes, hashes of the inputs included, for a
LoRA of dim 8 on the linear layers and one of dim 128 on the convolutions too. `--quick` merges into
models of a sixteenth of the width. `--kohya` names a checkout of sd-scripts whose dependencies this
Python has.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# A script's own folder comes first, and there this file is called what the room is.
sys.path.remove(str(Path(__file__).parent))

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from merge import to_ldm
from merge.container import Entry
from merge.output import plan, write_tensors

CROSS = "CrossAttnDownBlock2D"
UNETS = {
    # runwayml/stable-diffusion-v1-5, unet/config.json
    "sd15": {
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "down_block_types": (CROSS, CROSS, CROSS, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    },
    # stabilityai/stable-diffusion-xl-base-1.0, unet/config.json
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "down_block_types": ("DownBlock2D", CROSS, CROSS),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
CLIP_L |= {"num_attention_heads": 12, "projection_dim": 768}

CHILD = """
import sys
from pathlib import Path
from merge import Addend, merge
report = merge(Path(sys.argv[1]), [Addend(Path(sys.argv[2]), 0.8)], Path(sys.argv[3]))
print(len(report.matched), "layers")
# A process's own peak: what wait() tells counts the parent that it was forked from.
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@dataclass(frozen=True)
class Took:
    """What one process took: seconds, and MiB where it says so itself."""

    wall: float
    cpu: float
    rss: float
    said: str = ""

    def __str__(self) -> str:
        peak = f"{self.rss:7.0f} MiB" if self.rss else " " * 11
        return f"{self.wall:7.1f} s wall  {self.cpu:6.1f} s CPU  {peak}"


def state_dicts(family: str, quick: bool) -> list[dict[str, Tensor]]:
    """UNet, VAE and text encoders of true shape, without memory."""
    unet, vae, clips = dict(UNETS[family]), dict(VAE), [dict(CLIP_L), dict(BIG_G)]
    if quick:
        unet["block_out_channels"] = tuple(c // 10 for c in UNETS[family]["block_out_channels"])
        vae["block_out_channels"] = (32, 32, 64, 64)
        clips = [clip | {"num_hidden_layers": 2} for clip in clips]
    with torch.device("meta"):
        networks = [
            UNet2DConditionModel(**unet, norm_num_groups=32),
            AutoencoderKL(**vae),
            CLIPTextModel(CLIPTextConfig(**clips[0], vocab_size=49408)),
        ]
        if family == "sdxl":
            networks.append(CLIPTextModelWithProjection(CLIPTextConfig(**clips[1])))
    return [
        {k: v for k, v in network.state_dict().items() if not k.endswith("position_ids")}
        for network in networks
    ]


def loras(states: Sequence[dict[str, Tensor]], family: str) -> Iterator[tuple[str, Tensor, bool]]:
    """(kohya name, weight, whether of the convolution set) of what kohya's trainer adapts."""
    for key, weight in states[0].items():
        if key.endswith(".weight") and weight.ndim in (2, 4) and "." in key.removesuffix(".weight"):
            if "attentions" in key:
                yield "lora_unet_" + key.removesuffix(".weight").replace(".", "_"), weight, False
            elif any(part in key for part in ("resnets", "samplers")):
                yield "lora_unet_" + key.removesuffix(".weight").replace(".", "_"), weight, True
    prefixes = ("lora_te1_", "lora_te2_") if family == "sdxl" else ("lora_te_",)
    for prefix, state in zip(prefixes, states[2:], strict=True):
        for key, weight in state.items():
            if ".layers." in key and key.endswith(".weight") and weight.ndim == 2:
                module = "text_model." + key.removeprefix("text_model.").removesuffix(".weight")
                yield prefix + module.replace(".", "_"), weight, False


def write_random(path: Path, shapes: dict[str, tuple[int, ...]], scale: float) -> None:
    """A file of fp16 tensors: one block of normal numbers, over and over from another place."""
    torch.manual_seed(0)
    block = memoryview((torch.randn(1 << 23) * scale).half().numpy().tobytes())
    entries = [
        Entry(name, "F16", shape, 0, 2 * int(torch.Size(shape).numel()))
        for name, shape in shapes.items()
    ]

    def content(entry: Entry) -> Iterator[memoryview]:
        start = hash_of(entry.name) % (len(block) // 4) * 2
        left = entry.size
        while left:
            piece = block[start : start + min(left, len(block) - start)]
            yield piece
            left, start = left - len(piece), 0

    write_tensors(path, plan(entries, {}), content)


def hash_of(name: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(name[-12:]))


def write_lora(path: Path, modules: Sequence[tuple[str, Tensor, bool]], dim: int) -> int:
    """Random factors for every module; the number of modules."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, weight, _ in modules:
        kernel = tuple(weight.shape[2:])
        shapes[f"{name}.lora_down.weight"] = (dim, weight.shape[1], *kernel)
        shapes[f"{name}.lora_up.weight"] = (weight.shape[0], dim, *(1 for _ in kernel))
        shapes[f"{name}.alpha"] = ()
    write_random(path, shapes, 0.01)
    return len(modules)


def run(words: Sequence[str | Path], **environment: str) -> Took:
    """A process, timed from outside: its own CPU seconds and peak RSS."""
    started = time.monotonic()
    child = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - started
    if child.returncode:
        sys.exit(f"{' '.join(map(str, words[:3]))} … ended with {child.returncode}")
    lines = said.split("\n")
    peak = int(lines[1]) / 1024 if len(lines) > 1 and lines[1].isdecimal() else 0.0
    return Took(wall, usage.ru_utime + usage.ru_stime, peak, lines[0])


def copied(source: Path, work: Path) -> Took:
    """`cp` and fsync; the better of two."""
    target = work / "copy.safetensors"
    took = [run(["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", source, target]) for _ in range(2)]
    target.unlink()
    return min(took, key=lambda one: one.wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="a folder with 25 GB free")
    parser.add_argument("--kohya", type=Path)
    parser.add_argument("--only", choices=("sd15", "sdxl"))
    asked = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=asked.work) as folder:
        for family in ("sd15", "sdxl") if asked.only is None else (asked.only,):
            figures |= measure(family, Path(folder), asked.quick, asked.kohya)
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(family: str, work: Path, quick: bool, kohya: Path | None) -> dict[str, float]:
    """Both LoRAs into one base, and the figures by their names."""
    states = state_dicts(family, quick)
    tensors = to_ldm(*states)
    base, out = work / f"{family}.safetensors", work / "out.safetensors"
    write_random(base, {key: tuple(value.shape) for key, value in tensors.items()}, 0.02)
    adapted = list(loras(states, family))
    print(f"{family}: {base.stat().st_size / 1e9:.2f} GB, {len(tensors)} tensors")
    took: dict[str, Took] = {"cp": copied(base, work)}
    print(f"  cp + fsync                   {took['cp']}")
    for what, dim, conv in (("dim 8 linear", 8, False), ("dim 128 with conv", 128, True)):
        lora = work / f"{family}-{dim}.safetensors"
        count = write_lora(lora, [m for m in adapted if conv or not m[2]], dim)
        took[what] = run([sys.executable, "-c", CHILD, base, lora, out])
        ratio = took[what].wall / took["cp"].wall
        print(f"  {what:18} ({count:>4})    {took[what]}   {ratio:.2f} x cp, {took[what].said}")
        out.unlink()
        if kohya is not None:
            script = "merge_lora.py" if family == "sd15" else "sdxl_merge_lora.py"
            words = [sys.executable, kohya / "networks" / script, "--sd_model", base]
            words += ["--models", lora, "--ratios", "0.8", "--save_to", out]
            theirs = run([*words, "--save_precision", "fp16"], PYTHONPATH=str(kohya))
            print(f"  {'kohya, the same':26}   {theirs}")
            out.unlink()
        lora.unlink()
    base.unlink()
    best = took["dim 8 linear" if family == "sdxl" else "dim 128 with conv"]
    return {
        f"{family}_wall_ratio_cp": round(best.wall / took["cp"].wall, 3),
        f"{family}_cpu_s": round(best.cpu, 2),
        f"{family}_rss_mb": round(max(one.rss for what, one in took.items() if what != "cp"), 1),
    }


if __name__ == "__main__":
    if shutil.which("cp") is None:
        sys.exit("this benchmark compares with cp, which is not here")
    main()
