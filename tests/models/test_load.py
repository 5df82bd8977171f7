import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from pipeline.errors import RequestError
from pipeline.models.components import UNET
from pipeline.models.fitting import fitting
from pipeline.models.load import load_pipeline, load_scheduler, load_text, load_unet, load_vae
from pipeline.recipe.base import Base


@pytest.fixture
def configured(tiny: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.folder, tmp_path / "config"))


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _equal(ours: Any, theirs: Any) -> bool:
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_both_layouts_give_the_weights_that_were_saved(tiny: Any) -> None:
    for base in (tiny.as_file, tiny.as_folder):
        for loaded, made in (
            (load_unet(base), tiny.pipeline.unet),
            (load_vae(base), tiny.pipeline.vae),
            (load_text(base).readers[0].encoder, tiny.pipeline.text_encoder),
        ):
            assert _equal(loaded, made)
            assert not loaded.training and loaded.dtype == torch.float32
            assert not any(p.requires_grad for p in loaded.parameters())


def test_half_precision_files_load_as_float32(tiny: Any, tmp_path: Path) -> None:
    halved = {name: tensor.half() for name, tensor in tiny.tensors.items()}
    path = tiny.build.write_single_file(tmp_path / "half.safetensors", halved)
    tiny.pipeline.save_pretrained(tmp_path / "folder", variant="fp16")
    for base in (
        Base(checkpoint=path, config=tiny.folder),
        Base(checkpoint=tmp_path / "folder"),
    ):
        unet = load_unet(base)
        assert unet.dtype == torch.float32
        torch.testing.assert_close(
            unet.conv_in.weight, tiny.pipeline.unet.conv_in.weight, atol=1e-3, rtol=0
        )
        assert load_text(base).readers[0].encoder.dtype == load_vae(base).dtype == torch.float32


def test_agrees_with_diffusers_own_single_file_loader(tiny: Any) -> None:
    theirs = StableDiffusionPipeline.from_single_file(
        tiny.file, config=str(tiny.folder), local_files_only=True
    )
    ours = load_pipeline(tiny.as_file)
    for name in ("unet", "vae", "text_encoder"):
        assert _equal(getattr(ours, name), getattr(theirs, name))


def test_loading_draws_no_random_numbers(tiny: Any) -> None:
    for base in (tiny.as_file, tiny.as_folder):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        load_pipeline(base)
        assert torch.equal(before, torch.get_rng_state())


def test_both_layouts_draw_the_same_picture(tiny: Any, capfd: pytest.CaptureFixture[str]) -> None:
    pictures = []
    for base in (tiny.as_file, tiny.as_folder):
        pipeline = load_pipeline(base)
        drawn = pipeline(
            "two red circle",
            width=16,
            height=16,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(3),
            output_type="pt",
        )
        pictures.append(drawn.images)
    assert torch.equal(*pictures) and pictures[0].std() > 0
    shown = capfd.readouterr()
    assert shown.err == shown.out == ""


def test_captions_encode_as_the_pipeline_does(tiny: Any) -> None:
    captions = ["red circle, masterpiece", "", "blue " * 100]
    text = load_text(tiny.as_file)
    hidden, pooled = text.encode(captions)
    assert pooled is None and text.pooled_width is None
    assert hidden.shape == (3, 77, 32) == (3, text.length, text.width)
    for caption, row in zip(captions, hidden, strict=True):
        theirs, _ = tiny.pipeline.encode_prompt(caption, "cpu", 1, False)
        torch.testing.assert_close(row, theirs[0].detach(), atol=1e-6, rtol=1e-5)
    assert not torch.equal(hidden[0], hidden[1])
    assert text.encode([]).hidden.shape == (0, 77, 32)
    # 75 words and the two ends fit; one more does not.
    assert text.overlong(["blue " * 75, "blue " * 76, ""]) == 1


@pytest.mark.parametrize(
    ("markers", "prediction", "zero_snr"),
    [((), "epsilon", False), (("v_pred", "ztsnr"), "v_prediction", True)],
)
def test_schedulers_follow_the_checkpoint(
    tiny: Any, tmp_path: Path, markers: tuple[str, ...], prediction: str, zero_snr: bool
) -> None:
    path = tiny.build.write_single_file(tmp_path / "m.safetensors", tiny.tensors, markers)
    base = Base(checkpoint=path, config=tiny.folder)
    training, sampling = load_scheduler(base), load_pipeline(base).scheduler
    for scheduler in (training, sampling):
        assert scheduler.config.prediction_type == prediction
        assert (float(scheduler.alphas_cumprod[-1]) == 0) == zero_snr
        assert scheduler.config.clip_sample is False
    if not zero_snr:
        assert float(training.betas[0]) == pytest.approx(0.00085)
        assert float(training.betas[-1]) == pytest.approx(0.012)
    sampling.set_timesteps(4)
    # Leading spacing with SD's offset of 1; trailing starts at the last timestep, which has no
    # signal under zero terminal SNR.
    assert sampling.timesteps.tolist() == ([999, 749, 499, 249] if zero_snr else [751, 501, 251, 1])


def test_scheduler_written_for_another_kind(tiny: Any, configured: Path) -> None:
    """SD 1.5's own folder states PNDM, with keys that DDPM does not know."""
    path = configured / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "PNDMScheduler", "skip_prk_steps": True}))
    scheduler = load_scheduler(Base(checkpoint=tiny.file, config=configured))
    assert scheduler.config.beta_schedule == "scaled_linear"
    assert float(scheduler.betas[-1]) == pytest.approx(0.012)
    assert scheduler.config.clip_sample is False


def test_a_rounds_checkpoint_over_its_base(tiny: Any, tmp_path: Path) -> None:
    name = "model.diffusion_model.out.2.bias"
    changed = {**tiny.tensors, name: torch.arange(4.0)}
    whole = tiny.build.write_single_file(tmp_path / "round.safetensors", changed)
    alone = tmp_path / "unet.safetensors"
    state = {**tiny.pipeline.unet.state_dict(), "conv_out.bias": torch.arange(4.0)}
    save_file(state, alone)
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "round"))
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors")
    for base, checkpoint in (
        (tiny.as_file, whole),
        (tiny.as_folder, whole),
        (tiny.as_file, alone),
        (tiny.as_folder, folder),
    ):
        assert torch.equal(load_unet(base, checkpoint).conv_out.bias, torch.arange(4.0))
        pipeline = load_pipeline(base, checkpoint)
        assert torch.equal(pipeline.unet.conv_out.bias, torch.arange(4.0))
        assert _equal(pipeline.vae, tiny.pipeline.vae)
        assert _equal(pipeline.text_encoder, tiny.pipeline.text_encoder)


def test_old_files_without_text_model_and_with_position_ids(tiny: Any, tmp_path: Path) -> None:
    prefix = "cond_stage_model.transformer."
    old = {k.replace(prefix + "text_model.", prefix): v for k, v in tiny.tensors.items()}
    old[prefix + "embeddings.position_ids"] = torch.arange(77)[None]
    path = tiny.build.write_single_file(tmp_path / "old.safetensors", old)
    text = load_text(Base(checkpoint=path, config=tiny.folder))
    assert _equal(text.readers[0].encoder, tiny.pipeline.text_encoder)


@pytest.mark.parametrize(
    ("component", "changes", "loader", "title"),
    [
        ("unet", {"block_out_channels": [32, 32]}, load_unet, "UNet"),
        ("unet", {"layers_per_block": 2}, load_unet, "UNet"),
        ("unet", {"down_block_types": ["DownBlock2D"] * 2}, load_unet, "UNet"),
        ("vae", {"block_out_channels": [8, 32]}, load_vae, "VAE"),
        ("vae", {"down_block_types": "nonsense"}, load_vae, "VAE"),
        ("text_encoder", {"hidden_size": 64}, load_text, "text encoder"),
        ("text_encoder", {"num_hidden_layers": 1}, load_text, "text encoder"),
        ("text_encoder", {"num_hidden_layers": 3}, load_text, "text encoder"),
    ],
)
@pytest.mark.parametrize("layout", ["file", "folder"])
def test_configuration_of_another_model(
    tiny: Any,
    configured: Path,
    component: str,
    changes: dict[str, object],
    loader: Any,
    title: str,
    layout: str,
) -> None:
    _edit(configured / component / "config.json", **changes)
    base = (
        Base(checkpoint=tiny.file, config=configured)
        if layout == "file"
        else Base(checkpoint=configured)
    )
    with pytest.raises(RequestError) as caught:
        loader(base)
    message = str(caught.value)
    assert f"The {title} in {base.checkpoint} does not fit" in message
    assert f"{component}/config.json" in message and "\n" not in message


def test_a_file_with_fewer_or_more_layers_than_its_configuration(tiny: Any, tmp_path: Path) -> None:
    name = "model.diffusion_model.output_blocks.0.0.in_layers.2.weight"
    fewer = {k: v for k, v in tiny.tensors.items() if k != name}
    extra = {
        **tiny.tensors,
        "model.diffusion_model.output_blocks.9.0.in_layers.2.bias": torch.ones(3),
    }
    for number, tensors in enumerate((fewer, extra)):
        path = tiny.build.write_single_file(tmp_path / f"{number}.safetensors", tensors)
        with pytest.raises(RequestError, match=r"The UNet in .* does not fit"):
            load_unet(Base(checkpoint=path, config=tiny.folder))


def test_tokenizer_of_another_model(tiny: Any, configured: Path) -> None:
    path = configured / "tokenizer" / "tokenizer.json"
    table = json.loads(path.read_text())
    table["model"]["vocab"] |= {f"word{i}</w>": 5000 + i for i in range(3000)}
    path.write_text(json.dumps(table))
    with pytest.raises(RequestError, match=r"The tokenizer in .* has .* tokens, and the text"):
        load_text(Base(checkpoint=tiny.file, config=configured))


def test_missing_round_checkpoint(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="There is no "):
        load_unet(tiny.as_file, tmp_path / "none.safetensors")


def test_a_refusal_of_memory_is_no_wrong_configuration(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="allocate"), fitting(tmp_path, tmp_path, UNET):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    with (
        pytest.raises(RequestError, match="does not fit its configuration"),
        fitting(tmp_path, tmp_path, UNET),
    ):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.mark.drill
def test_nor_is_it_where_the_system_refuses_it() -> None:
    """A process that may take 4 MiB more than it has when it comes to load a base of 11."""
    program = """
import resource, sys
from pathlib import Path
from pipeline.errors import UrushiError, memory_refused
from pipeline.models.load import load_unet
from pipeline.recipe.base import Base
base = Path(sys.argv[1])
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (4 << 20), resource.RLIM_INFINITY))
try:
    load_unet(Base(checkpoint=base / "tiny.safetensors", config=base / "config"))
except Exception as error:
    print(isinstance(error, UrushiError), memory_refused(error) is not None)
"""
    base = Path(__file__).parents[2] / "demo" / "base"
    ended = subprocess.run([sys.executable, "-c", program, base], capture_output=True, text=True)
    assert ended.stdout.split() == ["False", "True"], ended.stderr
