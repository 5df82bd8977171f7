"""What models are asked: two encoders, layers, chunks, another VAE, arithmetic, looks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.artefacts import chain
from pipeline.artefacts.executor import Processes
from pipeline.artefacts.records import LatentRecord, read_records
from pipeline.cache.pictures import RECOLOUR, recoloured
from pipeline.cache.stage import run
from pipeline.errors import RequestError
from pipeline.models.load import load_text, load_vae
from pipeline.models.shards import open_latents, open_texts
from pipeline.models.vae import vae_digest
from pipeline.recipe.base import Base

LONG = "red " * 100 + "circle"
"""101 tokens: 75 and 26."""


def test_sdxl_texts_are_what_its_pipeline_makes(
    tiny_xl: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny_xl.as_file, 3)
    run(prepared.job, told)
    texts = open_texts(prepared.folders.text)
    for md5, caption in {**prepared.captions, "": ""}.items():
        hidden, _, pooled, _ = tiny_xl.pipeline.encode_prompt(
            caption, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        ours = texts.pooled(md5)
        assert ours is not None and ours.dtype == texts.hidden(md5).dtype == torch.float16
        torch.testing.assert_close(texts.hidden(md5).float(), hidden[0], atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(ours.float(), pooled[0], atol=2e-3, rtol=1e-3)
    assert texts.empty_pooled is not None


def test_clip_skip_is_the_encoder_with_its_last_layers_cut_off(tiny: Any) -> None:
    skipped = load_text(tiny.as_file.model_copy(update={"clip_skip": 2}))
    cut = load_text(tiny.as_file)
    layers = cut.readers[0].encoder.encoder.layers
    assert len(layers) == 2
    del layers[-1]
    ours, theirs = skipped.encode(["red circle"]).hidden, cut.encode(["red circle"]).hidden
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    plain = load_text(tiny.as_file).encode(["red circle"]).hidden
    assert (plain - ours).abs().max() > 1e-3


def test_clip_skip_is_refused_for_sdxl(tiny_xl: Any) -> None:
    with pytest.raises(RequestError, match=r"clip_skip is 2.* is of SDXL"):
        load_text(tiny_xl.as_file.model_copy(update={"clip_skip": 2}))


@pytest.mark.parametrize("family", ["tiny", "tiny_xl"])
def test_chunks_are_encoded_apart_and_joined(family: str, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(family).as_file
    one, three = load_text(base), load_text(base.model_copy(update={"tokens": 225}))
    parts = ["red " * 75, "red " * 25 + "circle", ""]
    whole, apart = three.encode([LONG]), one.encode(parts)
    assert whole.hidden.shape[1] == 231 == three.length
    torch.testing.assert_close(whole.hidden[0], apart.hidden.flatten(0, 1), atol=1e-5, rtol=1e-5)
    if whole.pooled is not None and apart.pooled is not None:
        torch.testing.assert_close(whole.pooled[0], apart.pooled[0], atol=1e-5, rtol=1e-5)
    assert (one.overlong([LONG]), three.overlong([LONG])) == (1, 0)


def test_variants_of_a_text_are_cached_each(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file, 3)
    path = prepared.folders.captions / chain.CAPTIONS_FILE
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["texts"] = ["blue square", "green"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    receipt = json.loads((path.parent / "receipt.json").read_text())
    receipt["outputs"][path.name]["bytes"] = path.stat().st_size
    (path.parent / "receipt.json").write_text(json.dumps(receipt))
    run(prepared.job, told)
    texts, md5 = open_texts(prepared.folders.text), lines[1]["md5"]
    assert texts.variants(md5) == 3 and texts.variants(lines[0]["md5"]) == 1
    assert len(texts) == 4  # Variants are no further pictures.
    expected = load_text(tiny.as_file).encode(["blue square", "green"]).hidden
    for number in (1, 2):
        torch.testing.assert_close(
            texts.hidden(md5, number).float(), expected[number - 1], atol=2e-3, rtol=1e-3
        )


def _encoded(vae: Any, pixels: np.ndarray) -> Any:
    with torch.no_grad():
        tensor = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
        return vae.encode(tensor[None]).latent_dist.mean[0]


def test_mirrored_and_recoloured_looks_are_entries_of_their_own(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file, 4, mirror="true", recolour=2)
    run(prepared.job, told)
    store = open_latents(prepared.folders.latents)
    assert len(store) == 4
    rows = read_records(prepared.folders.latents / chain.INDEX_FILE, LatentRecord)
    assert len(rows) == 16
    for md5, pixels in prepared.pixels.items():
        assert store.variants(md5) == 4
        one, two = (
            np.asarray(recoloured(Image.fromarray(pixels), md5, number)) for number in (1, 2)
        )
        shown = (pixels, pixels[:, ::-1].copy(), one[:, ::-1].copy(), two)
        for variant, look in enumerate(shown):
            torch.testing.assert_close(
                store.latent(md5, variant).mean.float(),
                _encoded(tiny.pipeline.vae, look),
                atol=2e-3,
                rtol=2e-3,
            )


def test_recolouring_is_small_counted_and_keeps_black_and_grey() -> None:
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    shades = {recoloured(grey, f"{n:032x}", 1).getpixel((0, 0)) for n in range(50)}
    assert len(shades) > 10
    assert all(r == g == b and abs(r - 100) <= 100 * RECOLOUR + 1 for r, g, b in shades)
    assert recoloured(grey, "a", 1).tobytes() == recoloured(grey, "a", 1).tobytes()
    black = Image.new("RGB", (8, 8))
    assert recoloured(black, "a", 1).getextrema() == ((0, 0),) * 3


def _other_vae(tiny: Any, tmp_path: Path) -> tuple[Path, Path, Path]:
    """The tiny VAE with another bias: as a bare file, a VAE's folder and a whole base."""
    whole = Path(shutil.copytree(tiny.folder, tmp_path / "whole"))
    weights = whole / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["quant_conv.bias"] = tensors["quant_conv.bias"] + 0.5
    save_file(tensors, weights)
    folder = Path(shutil.copytree(whole / "vae", tmp_path / "folder"))
    name = "first_stage_model.quant_conv.bias"
    bare = {
        key.removeprefix("first_stage_model."): (tensor + 0.5 if key == name else tensor)
        for key, tensor in tiny.tensors.items()
        if key.startswith("first_stage_model.")
    }
    save_file(bare, tmp_path / "bare.safetensors")
    return tmp_path / "bare.safetensors", folder, whole


def test_another_vae_from_a_file_a_folder_and_a_base(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    own = load_vae(tiny.as_file).state_dict()
    for path in _other_vae(tiny, tmp_path):
        other = load_vae(tiny.as_file, override=path).state_dict()
        assert other.keys() == own.keys()
        changed = {name for name in own if not torch.equal(own[name], other[name])}
        assert changed == {"quant_conv.bias"}
    plain = make_prepared(tmp_path / "a", tiny.as_file, 3)
    moved = make_prepared(tmp_path / "b", tiny.as_file, 3, vae=f'"{path}"')
    run(plain.job, told)
    run(moved.job, told)
    assert plain.folders.latents_fingerprint != moved.folders.latents_fingerprint
    assert plain.folders.text_fingerprint == moved.folders.text_fingerprint
    one, other = open_latents(plain.folders.latents), open_latents(moved.folders.latents)
    for record in one.records:
        difference = other.latent(record.md5).mean.float() - one.latent(record.md5).mean.float()
        torch.testing.assert_close(difference, torch.full_like(difference, 0.5), atol=4e-3, rtol=0)


def test_a_vae_that_does_not_belong_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="There is no VAE"):
        load_vae(tiny.as_file, override=tmp_path / "none.safetensors")
    _, folder, _ = _other_vae(tiny, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.13025}))
    with pytest.raises(RequestError, match=r"scales latents by 0.13025.*another family"):
        load_vae(tiny.as_file, override=folder)


def test_float16_is_refused_for_sdxls_vae_as_published(
    tiny_xl: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny_xl.as_file, 3, arithmetic='"float16"')
    with pytest.raises(RequestError, match="SDXL's VAE gives NaN"):
        run(prepared.job, told)


def test_bfloat16_is_near_float32(tiny: Any, tmp_path: Path, make_prepared: Any, told: Any) -> None:
    exact = make_prepared(tmp_path / "a", tiny.as_file, 3)
    rough = make_prepared(tmp_path / "b", tiny.as_file, 3, arithmetic='"bfloat16"')
    for one in (exact, rough):
        run(one.job, told)
    a, b = open_latents(exact.folders.latents), open_latents(rough.folders.latents)
    errors = [
        (a.latent(r.md5).mean.float() - b.latent(r.md5).mean.float()).abs().max() for r in a.records
    ]
    assert 0 < max(errors) < 0.1


@pytest.mark.drill
def test_processes_make_what_one_makes(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    alone = make_prepared(tmp_path / "a", tiny.as_file, 12)
    spread = make_prepared(tmp_path / "b", tiny.as_file, 12)
    run(alone.job, told)
    run(replace(spread.job, executor=Processes(2)), told)
    for name in ("latents", "text"):
        one, other = getattr(alone.folders, name), getattr(spread.folders, name)
        assert (one / "index.jsonl").read_bytes() == (other / "index.jsonl").read_bytes()
    a, b = open_latents(alone.folders.latents), open_latents(spread.folders.latents)
    for record in a.records:
        # The number of threads moves a convolution's last bit.
        torch.testing.assert_close(
            a.latent(record.md5).mean.float(),
            b.latent(record.md5).mean.float(),
            atol=2e-3,
            rtol=1e-3,
        )


def test_the_digest_of_another_vae_is_of_what_it_holds(
    tiny: Any, tmp_path: Path, make_prepared: Any
) -> None:
    bare, folder, _ = _other_vae(tiny, tmp_path)
    prepared = make_prepared(tmp_path / "a", tiny.as_file, 3)
    recipe, memory = prepared.job.recipe, prepared.job.workspace.identities

    def digest(path: Path | None) -> str:
        cache = recipe.cache.model_copy(update={"vae": path})
        return vae_digest(recipe.model_copy(update={"cache": cache}), memory)

    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    assert digest(folder) == digest(moved) != digest(None)
    assert digest(bare) not in (digest(folder), digest(None))
    assert isinstance(recipe.base, Base)
