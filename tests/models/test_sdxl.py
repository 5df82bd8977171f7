"""SDXL of real classes: both layouts, both encoders, markers, pictures, digests."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from pipeline.artefacts.identity import Identities
from pipeline.errors import RequestError
from pipeline.models.digest import component_digests
from pipeline.models.inspect import inspect, require_supported
from pipeline.models.load import load_pipeline, load_scheduler, load_text, load_unet, load_vae
from pipeline.recipe.base import Base

CAPTIONS = ["red circle, masterpiece", "", "blue " * 100]
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def _equal(ours: Any, theirs: Any) -> bool:
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_both_layouts_give_the_weights_that_were_saved(tiny_xl: Any) -> None:
    for base in (tiny_xl.as_file, tiny_xl.as_folder):
        facts = inspect(base)
        require_supported(facts)
        assert facts.family == "sdxl"
        text = load_text(base)
        loaded = (load_unet(base), load_vae(base), *(r.encoder for r in text.readers))
        for network, part in zip(loaded, PARTS, strict=True):
            assert _equal(network, getattr(tiny_xl.pipeline, part)), part
            assert not network.training and network.dtype == torch.float32


def test_agrees_with_diffusers_own_single_file_loader(tiny_xl: Any) -> None:
    theirs = StableDiffusionXLPipeline.from_single_file(
        tiny_xl.file, config=str(tiny_xl.folder), local_files_only=True
    )
    ours = load_pipeline(tiny_xl.as_file)
    assert all(_equal(getattr(ours, part), getattr(theirs, part)) for part in PARTS)


def test_captions_encode_as_the_pipeline_does(tiny_xl: Any) -> None:
    text = load_text(tiny_xl.as_file)
    hidden, pooled = text.encode(CAPTIONS)
    assert hidden.shape == (3, 77, 16 + 24) == (3, text.length, text.width)
    assert pooled is not None and pooled.shape == (3, 20) == (3, text.pooled_width)
    for i, caption in enumerate(CAPTIONS):
        theirs, _, theirs_pooled, _ = tiny_xl.pipeline.encode_prompt(
            caption, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        torch.testing.assert_close(hidden[i], theirs[0].detach(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(pooled[i], theirs_pooled[0].detach(), atol=1e-6, rtol=1e-5)
    none, nothing = text.encode([])
    assert none.shape == (0, 77, 40) and nothing is not None and nothing.shape == (0, 20)
    assert text.overlong(CAPTIONS) == 1


def test_the_files_projection_is_applied_from_the_right(tiny_xl: Any) -> None:
    """Loaders that forget the transpose give another pooled output without any error."""
    stored = tiny_xl.tensors["conditioner.embedders.1.model.text_projection"]
    encoder = load_text(tiny_xl.as_file).readers[1].encoder
    assert stored.shape == (24, 20) and torch.equal(encoder.text_projection.weight, stored.T)


def test_both_layouts_draw_the_same_picture(
    tiny_xl: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures = []
    for base in (tiny_xl.as_file, tiny_xl.as_folder):
        drawn = load_pipeline(base)(
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


def test_markers_make_v_and_zero_terminal_snr(tiny_xl: Any, tmp_path: Path) -> None:
    path = tiny_xl.build.write_single_file(
        tmp_path / "m.safetensors", tiny_xl.tensors, ("v_pred", "ztsnr")
    )
    base = Base(checkpoint=path, config=tiny_xl.folder)
    facts, scheduler = inspect(base), load_scheduler(base)
    assert (facts.prediction_type, facts.zero_terminal_snr) == ("v_prediction", True)
    assert scheduler.config.prediction_type == "v_prediction"
    assert float(scheduler.alphas_cumprod[-1]) == 0


def test_each_encoder_and_tokenizer_counts_for_texts_alone(tiny_xl: Any, tmp_path: Path) -> None:
    def fresh(base: Base, memory: str) -> Any:
        return component_digests(base, Identities(tmp_path / memory))

    before = fresh(tiny_xl.as_file, "0")
    for number, name in enumerate(
        (
            "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
            "conditioner.embedders.1.model.ln_final.bias",
        )
    ):
        values = tiny_xl.tensors[name] + 1
        path = tiny_xl.build.write_single_file(
            tmp_path / f"{number}.safetensors", {**tiny_xl.tensors, name: values}
        )
        after = fresh(Base(checkpoint=path, config=tiny_xl.folder), f"file {number}")
        assert after.text != before.text and after.vae == before.vae
    folder = Path(shutil.copytree(tiny_xl.folder, tmp_path / "folder"))
    settings = folder / "tokenizer_2" / "tokenizer_config.json"
    unchanged = fresh(Base(checkpoint=folder), "before")
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": "a"}))
    changed = fresh(Base(checkpoint=folder), "changed")
    assert changed.text != unchanged.text and changed.vae == unchanged.vae


def test_configurations_of_sd_1_5_do_not_do_for_sdxl(tiny_xl: Any, tiny: Any) -> None:
    with pytest.raises(RequestError, match=r"Stable Diffusion XL: it lacks text_encoder_2/config"):
        load_text(Base(checkpoint=tiny_xl.file, config=tiny.folder))


def test_a_second_encoder_of_another_width(tiny_xl: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_xl.folder, tmp_path / "folder"))
    path = folder / "text_encoder_2" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": 32}))
    with pytest.raises(RequestError, match=r"The second text encoder in .* does not fit"):
        load_text(Base(checkpoint=tiny_xl.file, config=folder))
