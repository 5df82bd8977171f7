"""Resizing a LoRA from its thin factors against the full SVD of the full product, in one run.

    python benchmarks/lora.py [--quick] [--json FILE] [--work DIR]

Writes a random LoRA of rank 128 for all linear layers of SD 1.5 (264 modules), resizes it to 16,
and takes a sample of its layers apart both ways, one thread each. Figures:

resize_ratio_full_svd      CPU seconds of the full SVD over ours, on the sample, each of its shapes
                           counted as often as the file has it
resize_largest_difference  of the 16 singular values kept, relative, on the sample
resize_cpu_s               CPU seconds of `resize` for the whole file, hashing included
resize_rss_mb              peak memory by then, torch included
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# A script's own folder comes first, and there a benchmark is called what the room is: merge.
sys.path.remove(str(Path(__file__).parent))

import torch
from safetensors.torch import save_file
from torch import Tensor

from merge.lora import Factors, open_loras
from merge.resize import resize
from merge.thin import Cut, of_factors

RANK, KEPT, ALPHA = 128, 16, 64.0

ATTENTIONS = (
    *(("down_blocks", i, j, (320, 640, 1280)[i]) for i in range(3) for j in range(2)),
    ("mid_block", None, 0, 1280),
    *(("up_blocks", i, j, (1280, 640, 320)[i - 1]) for i in range(1, 4) for j in range(3)),
)
"""Of SD 1.5's UNet: side, block, number, channels."""
CONTEXT, TEXT_LAYERS, TEXT_WIDE = 768, 12, 3072

SAMPLE = ((320, 320), (640, 640), (2560, 320), (1280, 768), (1280, 1280))
"""Shapes (out, in) of the layers that both ways take apart."""
QUICK_SAMPLE = ((640, 640), (1280, 1280))


def shapes() -> Iterator[tuple[str, int, int]]:
    """kohya's name, out and in of every linear layer and 1x1 convolution that a LoRA adapts."""
    for side, block, number, width in ATTENTIONS:
        where = side if block is None else f"{side}_{block}"
        prefix = f"lora_unet_{where}_attentions_{number}"
        inner = f"{prefix}_transformer_blocks_0"
        yield f"{prefix}_proj_in", width, width
        yield f"{prefix}_proj_out", width, width
        for attention, context in (("attn1", width), ("attn2", CONTEXT)):
            yield f"{inner}_{attention}_to_q", width, width
            yield f"{inner}_{attention}_to_k", width, context
            yield f"{inner}_{attention}_to_v", width, context
            yield f"{inner}_{attention}_to_out_0", width, width
        yield f"{inner}_ff_net_0_proj", 8 * width, width
        yield f"{inner}_ff_net_2", width, 4 * width
    for layer in range(TEXT_LAYERS):
        prefix = f"lora_te_text_model_encoder_layers_{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{prefix}_self_attn_{part}", CONTEXT, CONTEXT
        yield f"{prefix}_mlp_fc1", TEXT_WIDE, CONTEXT
        yield f"{prefix}_mlp_fc2", CONTEXT, TEXT_WIDE


def write_lora(path: Path) -> None:
    """A random LoRA whose singular values fall about as the root of their number, in fp16."""
    generator = torch.Generator().manual_seed(0)
    fall = torch.arange(1, RANK + 1).float().rsqrt()
    tensors: dict[str, Tensor] = {}
    for name, out, inner in shapes():
        up = torch.randn(out, RANK, generator=generator) * fall
        down = torch.randn(RANK, inner, generator=generator)
        tensors[f"{name}.lora_up.weight"] = (up * 0.02).half()
        tensors[f"{name}.lora_down.weight"] = (down * 0.02).half()
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA).half()
    save_file(tensors, path)


def thin(factors: Factors) -> Tensor:
    """The singular values our way, and the factors kept."""
    spectrum = of_factors(factors.up, factors.down, factors.scale)
    spectrum.factors(KEPT)
    return spectrum.values


def whole(factors: Factors) -> Tensor:
    """The same by the full SVD of the full product, in float32 as other programs do it."""
    product = factors.up.float() @ factors.down.float() * factors.scale
    left, values, right = torch.linalg.svd(product, full_matrices=False)
    _ = left[:, :KEPT] * values[:KEPT], right[:KEPT]
    return values


def cpu(work: Callable[[Factors], Tensor], factors: Factors) -> tuple[float, Tensor]:
    """CPU seconds of this process, and the work's result."""
    started = time.process_time()
    result = work(factors)
    return time.process_time() - started, result


def sampled(lora: Path, sample: tuple[tuple[int, int], ...]) -> dict[str, float]:
    """Both ways on the first layer of each shape."""
    ours = full = largest = 0.0
    with open_loras([lora]) as (file,):
        for shape in sample:
            alike = [m for m in file.modules.values() if m.shape == (*shape, 1, 1)]
            factors = file.thin(alike[0])
            seconds, values = cpu(thin, factors)
            ours += seconds * len(alike)
            seconds, wanted = cpu(whole, factors)
            full += seconds * len(alike)
            difference = (values[:KEPT] / wanted[:KEPT].double() - 1).abs().max()
            largest = max(largest, float(difference))
    return {"resize_ratio_full_svd": full / ours, "resize_largest_difference": largest}


def main() -> None:
    """Measures, prints, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two layers in the sample, not five")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the LoRAs are made")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=asked.work) as folder:
        lora, out = Path(folder, "lora.safetensors"), Path(folder, "small.safetensors")
        write_lora(lora)
        of_factors(torch.eye(RANK), torch.eye(RANK), 1.0)  # Libraries load at first use.
        figures = sampled(lora, QUICK_SAMPLE if asked.quick else SAMPLE)
        started = time.process_time()
        report = resize(lora, out, Cut(rank=KEPT))
        figures["resize_cpu_s"] = time.process_time() - started
    figures["resize_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines = [f"{len(report.layers)} modules, {report.share:.1%} of the norm kept"]
    lines += [f"{name:28} {value:.4g}" for name, value in figures.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    if asked.json is not None:
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
