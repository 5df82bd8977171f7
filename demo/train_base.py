"""Trains the tiny base on plain drawings and writes it as one ldm-layout file: how it was made.

    python -m demo.train_base --work FOLDER --out demo/base

Stable Diffusion's own classes at a size that a CPU can train in about an hour: a VAE of 0.68 M
parameters (f = 4), a UNet of 4.7 M, a CLIP text encoder of two layers with a tokenizer of its own.
The VAE sees random textures besides the drawings, as any general VAE would, so that it can hold
styles which the UNet was never taught. Not part of any run: its product ships with the program.
"""

import argparse
import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import EMAModel
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.drawings import draw, plain_scene
from merge import to_ldm

LOG = logging.getLogger(__name__)
SCALING = 0.18215
SIZES = ((64, 64), (64, 64), (64, 64), (80, 48), (48, 80))
"""(width, height) in pixels: mostly squares, as the aspect buckets of a real base would be."""

WORDS = (
    "circle square triangle star heart moon robot cat red orange yellow green blue purple pink "
    "white white grey beige aqua black red blue green masterpiece best quality high good "
    "normal low worst score solo figure figures simple background gold outline lacquer maki e "
    "box style picture drawing a of the and with on in no girl boy general sensitive year "
    "newest recent mid early old highres simple polka dot striped checkered"
)
"""What the tokenizer knows as whole words. Which of two equally frequent merges comes first is up
to the trainer, so another run numbers a few of the tokens otherwise."""


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer in which each of WORDS is one token; others fall into letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    # Every word twice: the trainer merges only pairs that it has seen at least twice.
    tokenizer.train_from_iterator([WORDS] * 2, trainer)
    merges = [tuple(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokens = alphabet + [a + "</w>" for a in alphabet]
    tokens += [m for m in dict.fromkeys(a + b for a, b in merges) if m not in set(tokens)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    settings = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=SCALING,
    )


def new_unet() -> UNet2DConditionModel:
    """Three levels, the deepest at 4x4: with two, colours came long before shapes did. No attention
    at 16x16, where it costs most and adds least."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 112),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def texture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A random ground with dots, stripes, polygons and outlines: no motif of either style."""

    def colour() -> tuple[int, int, int]:
        r, g, b = rng.integers(0, 256, 3)
        return int(r), int(g), int(b)

    w, h = width * 2, height * 2
    image = Image.new("RGB", (w, h), colour())
    canvas = ImageDraw.Draw(image)
    kind, ink, step = rng.integers(4), colour(), float(rng.uniform(12, 36))
    if kind == 0:
        slant, thick = float(rng.uniform(-h, h)), max(1, int(step * rng.uniform(0.15, 0.5)))
        for i in range(-int(h / step), int(2 * w / step)):
            canvas.line((i * step, 0, i * step + slant, h), fill=ink, width=thick)
    elif kind == 1:
        r = step * float(rng.uniform(0.12, 0.4))
        for i in range(int(w / step) + 2):
            for j in range(int(h / step) + 2):
                x, y = i * step, j * step
                canvas.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif kind == 2:
        for i in range(int(w / step) + 1):
            for j in range(int(h / step) + 1):
                if (i + j) % 2:
                    canvas.rectangle((i * step, j * step, (i + 1) * step, (j + 1) * step), fill=ink)
    for _ in range(int(rng.integers(0, 5))):
        cx, cy, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(6, w * 0.4)
        angles = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 9))))
        points = [(cx + r * math.cos(a), cy + r * math.sin(a)) for a in angles]
        if rng.random() < 0.4:
            canvas.ellipse(
                (cx - r, cy - r, cx + r, cy + r), fill=colour(), outline=colour(), width=3
            )
        else:
            canvas.polygon(points, fill=colour(), outline=colour(), width=int(rng.integers(1, 6)))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def tensor(image: Image.Image) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    pixels = np.asarray(image, dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1.0


def vae_batches(seed: int, batch: int, side: int) -> Iterator[Tensor]:
    rng = np.random.default_rng(seed)
    while True:
        pictures = []
        for _ in range(batch):
            wide = rng.random() < 0.5
            picture = draw(plain_scene(rng), 64, 64) if wide else texture(rng, 64, 64)
            x, y = rng.integers(0, 64 - side + 1, 2)
            pictures.append(tensor(picture.crop((x, y, x + side, y + side))))
        yield torch.stack(pictures)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + 0.5 MSE + 0.5 edges + 0.7 chroma: without the last, thin lines lose their hue first."""

    def edges(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]

    def chroma(x: Tensor) -> Tensor:
        return torch.stack([x[:, 0] - x[:, 1], x[:, 2] - x[:, 1]], 1)

    dy, dx = edges(output)
    ty, tx = edges(target)
    return (
        F.l1_loss(output, target)
        + 0.5 * F.mse_loss(output, target)
        + 0.5 * (F.l1_loss(dy, ty) + F.l1_loss(dx, tx))
        + 0.7 * F.l1_loss(chroma(output), chroma(target))
    )


def train_vae(steps_small: int, steps_full: int) -> AutoencoderKL:
    """32-pixel crops first (a third of the cost), then whole pictures."""
    torch.manual_seed(1)
    vae = new_vae()
    total = steps_small + steps_full
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1.3e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: (
            min(1.0, (k + 1) / 50) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * k / total)))
        ),
    )
    small, full = vae_batches(11, 16, 32), vae_batches(12, 12, 64)
    for step in range(total):
        x = next(small if step < steps_small else full)
        posterior = vae.encode(x).latent_dist
        output = vae.decode(posterior.sample()).sample
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = reconstruction_loss(output, x) + 5e-4 * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == total - 1:
            psnr = -10 * math.log10(float(F.mse_loss(output.clamp(-1, 1), x)) / 4)
            LOG.info("vae %d/%d loss %.4f kl %.2f psnr %.2f dB", step, total, loss, kl, psnr)
    return vae.eval()


@torch.no_grad()
def fold_statistics(vae: AutoencoderKL) -> None:
    """Folds the latents' mean and deviation into the quant convs: 0.18215 gives unit variance."""
    batches = vae_batches(13, 16, 64)
    means = torch.cat([vae.encode(next(batches)).latent_dist.mean for _ in range(16)])
    mean, deviation = means.mean((0, 2, 3)), means.std((0, 2, 3))
    scale = 1.0 / (SCALING * deviation)
    weight, bias = vae.quant_conv.weight, vae.quant_conv.bias
    weight[:4] *= scale[:, None, None, None]
    bias[:4] = (bias[:4] - mean) * scale
    bias[4:] += 2 * torch.log(scale)
    # z = (z' / scale) + mean, taken up by the input of post_quant_conv.
    post = vae.post_quant_conv
    post.bias += (post.weight[:, :, 0, 0] * mean[None, :]).sum(1)
    post.weight /= scale[None, :, None, None]


@torch.no_grad()
def corpus(vae: AutoencoderKL, count: int) -> dict[tuple[int, int], tuple[Tensor, list[list[str]]]]:
    """Latents (N, 4, h, w) and tag lists of `count` plain drawings, by size in pixels."""
    rng = np.random.default_rng(21)
    pictures: dict[tuple[int, int], list[tuple[Tensor, list[str]]]] = {}
    for _ in range(count):
        size = SIZES[int(rng.integers(len(SIZES)))]
        scene = plain_scene(rng)
        tags = [tag.replace("_", " ") for tag in scene.general_tags()]
        pictures.setdefault(size, []).append((tensor(draw(scene, *size)), tags))
    encoded = {}
    for size, items in pictures.items():
        parts = []
        for i in range(0, len(items), 32):
            x = torch.stack([p for p, _ in items[i : i + 32]])
            parts.append(vae.encode(x).latent_dist.mean * SCALING)
        encoded[size] = (torch.cat(parts), [tags for _, tags in items])
    return encoded


def train_unet(
    work: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, steps: int, pictures: int
) -> None:
    """v-prediction, caption dropout, stratified timesteps, cosine rate, EMA; saves as it goes."""
    torch.manual_seed(2)
    rng = np.random.default_rng(3)
    unet, text = new_unet(), new_text_encoder(tokenizer)
    scheduler = new_scheduler()
    data = corpus(vae, pictures)
    sizes = list(data)
    shares = np.array([len(data[s][1]) for s in sizes], dtype=float)
    shares /= shares.sum()
    LOG.info("corpus of %d, latent std %.3f", pictures, data[(64, 64)][0].std())
    parameters = [*unet.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: (
            min(1.0, (k + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * k / steps)))
        ),
    )
    ema_unet, ema_text = (
        EMAModel(unet.parameters(), decay=0.995),
        EMAModel(text.parameters(), decay=0.995),
    )
    batch, running = 16, 0.0
    for step in range(steps):
        latents, tags = data[sizes[int(rng.choice(len(sizes), p=shares))]]
        picks = rng.integers(0, len(tags), batch)
        captions = []
        for i in picks:
            head, *rest = tags[i]
            # Figures keep their order (left to right); the ground may come before or after them.
            if rng.random() < 0.3:
                rest = rest[-1:] + rest[:-1]
            captions.append("" if rng.random() < 0.1 else ", ".join([head, *rest]))
        ids = tokenizer(
            captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids
        z = latents[torch.from_numpy(picks)]
        noise = torch.randn_like(z)
        timesteps = ((torch.arange(batch) + torch.rand(batch)) * (1000 / batch)).long()
        target = scheduler.get_velocity(z, noise, timesteps)
        output = unet(scheduler.add_noise(z, noise, timesteps), timesteps, text(ids)[0]).sample
        loss = F.mse_loss(output, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        ema_unet.step(unet.parameters())
        ema_text.step(text.parameters())
        running = float(loss) if step == 0 else 0.98 * running + 0.02 * float(loss)
        if step % 50 == 0:
            LOG.info("unet %d/%d loss %.4f", step, steps, running)
        if step % 300 == 299 or step == steps - 1:
            for ema, model in ((ema_unet, unet), (ema_text, text)):
                ema.store(model.parameters())
                ema.copy_to(model.parameters())
            save(work / "pipeline", vae, unet, text, tokenizer)
            for ema, model in ((ema_unet, unet), (ema_text, text)):
                ema.restore(model.parameters())


def save(
    folder: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def export(pipeline: Path, out: Path) -> None:
    """The trained pipeline as out/tiny.safetensors (ldm layout, fp16) and out/config."""
    unet = load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(pipeline / "vae" / "diffusion_pytorch_model.safetensors")
    text = load_file(pipeline / "text_encoder" / "model.safetensors")
    text = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in text.items()}
    tensors = {name: t.half().contiguous() for name, t in to_ldm(unet, vae, text).items()}
    tensors["v_pred"] = torch.empty(0)  # The marker by which UIs know a v-prediction checkpoint.
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "urushi tiny base",
        "modelspec.description": "Plain procedural drawings at 64 pixels, for demos and tests.",
        "modelspec.license": "MIT",
        "modelspec.prediction_type": "v",
        "modelspec.resolution": "64x64",
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "tiny.safetensors", metadata=metadata)
    for part in ("model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        for source in sorted((pipeline / part).rglob("*.json")) or [pipeline / part]:
            target = out / "config" / source.relative_to(pipeline)
            target.parent.mkdir(parents=True, exist_ok=True)
            table = json.loads(source.read_text(encoding="utf-8"))
            table.pop("_name_or_path", None)  # A path of the machine that trained it.
            target.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where parts in progress lie")
    parser.add_argument("--out", type=Path, required=True, help="where the finished base goes")
    parser.add_argument("--vae-steps", type=int, nargs=2, default=(1800, 500))
    parser.add_argument("--unet-steps", type=int, default=3600)
    parser.add_argument("--pictures", type=int, default=6000)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)
    work: Path = arguments.work
    tokenizer = build_tokenizer(work / "tokenizer")
    if (work / "vae" / "config.json").exists():
        vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    else:
        vae = train_vae(*arguments.vae_steps)
        fold_statistics(vae)
        vae.save_pretrained(work / "vae")
    train_unet(work, vae, tokenizer, arguments.unet_steps, arguments.pictures)
    export(work / "pipeline", arguments.out)


if __name__ == "__main__":
    main()
