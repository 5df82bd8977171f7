"""`urushi export BUILD`: dtype, VAE and form of the final model."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from pipeline.artefacts.job import Job
from pipeline.errors import RequestError, UrushiError
from pipeline.recipe.base import Base
from pipeline.rounds import export as room
from pipeline.rounds.chain import Origin
from pipeline.rounds.export import export
from pipeline.rounds.history import history
from pipeline.rounds.rebuild import Plan
from urushi.export import export_build

VAE = "first_stage_model."


@pytest.fixture
def vae(finished: Job, tmp_path: Path) -> Path:
    """The base's VAE with another number in every weight, in a file of its own."""
    tensors = load_file(finished.recipe.base.checkpoint)
    own = {k.removeprefix(VAE): v.float() * 1.25 for k, v in tensors.items() if k.startswith(VAE)}
    save_file(own, tmp_path / "vae.safetensors")
    return tmp_path / "vae.safetensors"


def exported(job: Job, out: Path, dtype: str = "float16", **asked: object) -> Path:
    vae, folder = asked.get("vae"), bool(asked.get("folder"))
    assert vae is None or isinstance(vae, Path)
    export_build("coats", out, dtype, vae, folder, job.workspace.root)
    return out


def test_in_the_origins_dtype_it_is_the_final_checkpoint(
    finished: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = exported(finished, tmp_path / "mine.safetensors")
    assert "float16, loads with diffusers" in capsys.readouterr().out
    final, mine = load_file(finished.folder.final), load_file(out)
    assert list(mine) == list(final)
    assert all(mine[key].equal(final[key]) for key in final)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]
    with pytest.raises(RequestError, match="is there already"):
        exported(finished, out)


def test_another_vae_takes_the_place_of_the_origins_and_of_nothing_else(
    finished: Job, tmp_path: Path, vae: Path
) -> None:
    mine = load_file(exported(finished, tmp_path / "mine.safetensors", "float32", vae=vae))
    final, other = load_file(finished.folder.final), load_file(vae)
    for key, tensor in mine.items():
        if key.startswith(VAE):
            assert tensor.equal(other[key.removeprefix(VAE)])
        else:
            assert not tensor.is_floating_point() or tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, final[key].to(tensor.dtype), rtol=1e-3, atol=1e-7)


def test_a_single_file_becomes_a_folder_that_diffusers_loads(
    finished: Job, tmp_path: Path, vae: Path
) -> None:
    out = exported(finished, tmp_path / "mine", vae=vae, folder=True)
    pipeline = StableDiffusionPipeline.from_pretrained(out)
    key = "down_blocks.0.attentions.0.proj_in.weight"
    held = pipeline.unet.state_dict()[key].half()
    final = load_file(finished.folder.final)
    assert held.equal(final["model.diffusion_model.input_blocks.1.1.proj_in.weight"].view_as(held))
    other = load_file(vae)["encoder.conv_in.weight"].half()
    assert pipeline.vae.state_dict()["encoder.conv_in.weight"].half().equal(other)


def test_numbers_too_large_for_the_dtype_are_named_and_nothing_is_left(
    finished: Job, tmp_path: Path, vae: Path
) -> None:
    save_file({k: v * 1e9 for k, v in load_file(vae).items()}, vae)
    with pytest.raises(UrushiError, match=r"hold numbers too large for its dtype"):
        exported(finished, tmp_path / "mine", vae=vae, folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["vae.safetensors"]


def test_a_vae_that_does_not_fit_is_refused_before_the_merge(
    finished: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_merge", lambda *_: pytest.fail("it was merged first"))
    with pytest.raises(RequestError, match=r"There is no VAE .*none \(--vae\)"):
        exported(finished, tmp_path / "mine.safetensors", vae=tmp_path / "none")
    assert finished.recipe.base.config is not None
    whole = AutoencoderKL.from_pretrained(finished.recipe.base.config / "vae")
    whole.save_pretrained(tmp_path / "vae", max_shard_size="20KB")
    with pytest.raises(RequestError, match=r"--vae .*vae is in \d+ files.*add --folder"):
        exported(finished, tmp_path / "mine.safetensors", vae=tmp_path / "vae")


def test_a_folder_stays_one_and_its_vae_alone_changes(
    finished: Job, tmp_path: Path, vae: Path
) -> None:
    """From an origin that is a folder; the links are any that fit it."""
    origin = finished.recipe.base.config
    assert origin is not None
    links = history(finished, 1).links
    made_of = Plan(Origin("coats", origin, finished.workspace.identities.of(origin)), links, (), "")
    base = Base(checkpoint=origin)
    export(made_of, base, tmp_path / "mine", dtype="float32", vae=vae)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "mine")
    before = StableDiffusionPipeline.from_pretrained(origin)
    other = load_file(vae)["encoder.conv_in.weight"]
    assert pipeline.vae.state_dict()["encoder.conv_in.weight"].equal(other)
    key = "down_blocks.0.attentions.0.proj_in.weight"
    assert not pipeline.unet.state_dict()[key].equal(before.unet.state_dict()[key])
    text = pipeline.text_encoder.state_dict()
    assert all(text[name].equal(t) for name, t in before.text_encoder.state_dict().items())
