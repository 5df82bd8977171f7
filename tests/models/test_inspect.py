import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import RequestError
from pipeline.models.inspect import inspect, require_supported
from pipeline.recipe.base import Base


@pytest.fixture
def configured(tiny: Any, tmp_path: Path) -> Path:
    """A copy of the tiny folder whose configurations a test may change."""
    return Path(shutil.copytree(tiny.folder, tmp_path / "config"))


def _schedule(folder: Path, **changes: object) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_both_layouts_hold_the_same_tensors(tiny: Any) -> None:
    file, folder = inspect(tiny.as_file), inspect(tiny.as_folder)
    assert (file.layout, folder.layout) == ("single-file", "diffusers")
    assert file.family == folder.family == "sd15"
    assert file.tensors == folder.tensors == len(tiny.tensors)
    assert file.bytes == tiny.file.stat().st_size
    assert folder.bytes == sum(f.stat().st_size for f in tiny.folder.rglob("*.safetensors"))
    require_supported(file)


@pytest.mark.parametrize(
    ("markers", "metadata", "schedule", "expected"),
    [
        ((), {}, {}, ("epsilon", False)),
        (("v_pred",), {}, {}, ("v_prediction", False)),
        (("v_pred", "ztsnr"), {}, {}, ("v_prediction", True)),
        (("ztsnr",), {"modelspec.prediction_type": "v"}, {}, ("v_prediction", True)),
        ((), {"modelspec.prediction_type": "v"}, {}, ("v_prediction", False)),
        ((), {}, {"prediction_type": "v_prediction"}, ("v_prediction", False)),
        ((), {}, {"rescale_betas_zero_snr": True}, ("epsilon", True)),
        # What is written into the file outweighs the configuration beside it.
        (
            (),
            {"modelspec.prediction_type": "epsilon"},
            {"prediction_type": "v_prediction"},
            ("epsilon", False),
        ),
        (
            ("v_pred",),
            {"modelspec.prediction_type": "epsilon"},
            {"rescale_betas_zero_snr": True},
            ("v_prediction", False),
        ),
    ],
)
def test_prediction_type_of_a_file(
    tiny: Any,
    configured: Path,
    tmp_path: Path,
    markers: tuple[str, ...],
    metadata: dict[str, str],
    schedule: dict[str, object],
    expected: tuple[str, bool],
) -> None:
    _schedule(configured, **schedule)
    path = tiny.build.write_single_file(tmp_path / "m.safetensors", tiny.tensors, markers, metadata)
    facts = inspect(Base(checkpoint=path, config=configured))
    assert (facts.prediction_type, facts.zero_terminal_snr) == expected


def test_prediction_type_of_a_folder(configured: Path) -> None:
    _schedule(configured, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    facts = inspect(Base(checkpoint=configured))
    assert (facts.prediction_type, facts.zero_terminal_snr) == ("v_prediction", True)


def test_unknown_prediction_type_is_named(configured: Path) -> None:
    _schedule(configured, prediction_type="sample")
    with pytest.raises(RequestError, match="'sample'; epsilon and v_prediction"):
        inspect(Base(checkpoint=configured))


def _refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> str:
    path = tmp_path / "wrong.safetensors"
    save_file(tensors, path)
    with pytest.raises(RequestError) as caught:
        require_supported(inspect(Base(checkpoint=path)))
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_lora_is_no_base(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"
    assert "is a LoRA, not a checkpoint" in _refused({name: torch.zeros(2, 2)}, tmp_path)


def test_says_what_is_missing(tiny: Any, tmp_path: Path) -> None:
    rest = {k: v for k, v in tiny.tensors.items() if not k.startswith("first_stage_model.")}
    message = _refused(rest, tmp_path)
    assert "lacks the VAE (first_stage_model.*);" in message
    message = _refused({"wte.weight": torch.zeros(2)}, tmp_path)
    assert all(part in message for part in ("UNet", "VAE", "text encoder", "wte.weight"))
    assert "holds no tensors" in _refused({}, tmp_path)


def test_one_component_of_a_folder_is_recognised(tiny: Any) -> None:
    with pytest.raises(RequestError, match=r"name the folder with model_index\.json"):
        inspect(Base(checkpoint=next((tiny.folder / "unet").glob("*.safetensors"))))


@pytest.mark.parametrize(
    "name",
    [
        "conditioner.embedders.1.model.ln_final.weight",
        "model.diffusion_model.label_emb.0.0.weight",
    ],
)
def test_half_an_sdxl_is_refused(tiny: Any, tmp_path: Path, name: str) -> None:
    """Such as the refiner, which has only the second of SDXL's encoders."""
    message = _refused({**tiny.tensors, name: torch.zeros(2)}, tmp_path)
    assert "not a whole Stable Diffusion XL" in message and "the first text encoder" in message


def test_sd2_and_inpainting_are_refused(tiny: Any, tmp_path: Path) -> None:
    sd2 = {
        k.replace("cond_stage_model.transformer.", "cond_stage_model.model."): v
        for k, v in tiny.tensors.items()
    }
    assert "Stable Diffusion 2" in _refused(sd2, tmp_path)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    inpainting = {**tiny.tensors, first: torch.zeros(32, 9, 3, 3)}
    assert "takes 9 input channels" in _refused(inpainting, tmp_path)


def test_the_refiners_folder_is_refused(configured: Path) -> None:
    index = configured / "model_index.json"
    table = json.loads(index.read_text())
    two = {"text_encoder_2": ["transformers", "CLIPTextModel"], "text_encoder": [None, None]}
    index.write_text(json.dumps({**table, **two}))
    with pytest.raises(RequestError, match="lacks text_encoder"):
        require_supported(inspect(Base(checkpoint=configured)))


def test_missing_checkpoint_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"There is no checkpoint .*\[base\].checkpoint"):
        inspect(Base(checkpoint=tmp_path / "none.safetensors"))


def test_folders_that_are_no_pipeline(tmp_path: Path, configured: Path) -> None:
    with pytest.raises(RequestError, match=r"without model_index\.json"):
        inspect(Base(checkpoint=tmp_path))
    next((configured / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(RequestError, match="has no weights of the VAE"):
        inspect(Base(checkpoint=configured))


def test_config_folder_must_be_whole(tiny: Any, configured: Path, tmp_path: Path) -> None:
    (configured / "vae" / "config.json").unlink()
    (configured / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    (configured / "tokenizer" / "merges.txt").unlink(missing_ok=True)
    with pytest.raises(RequestError) as caught:
        inspect(Base(checkpoint=tiny.file, config=configured))
    assert "lacks vae/config.json, tokenizer/" in str(caught.value)
    with pytest.raises(RequestError, match="does not exist"):
        inspect(Base(checkpoint=tiny.file, config=tmp_path / "nowhere"))
    with pytest.raises(RequestError, match="has configurations of its own"):
        inspect(Base(checkpoint=tiny.folder, config=configured))


def test_inspecting_needs_no_torch(tiny: Any) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.recipe.base import Base; "
        "from pipeline.models.inspect import inspect; import pipeline.models.places; "
        f"base = Base(checkpoint=Path({str(tiny.folder)!r})); "
        "print(inspect(base).family, 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["sd15", "False"]


def test_configurations_that_only_the_hub_has(tiny: Any, tmp_path: Path) -> None:
    """Offline, with an empty cache: one sentence, and no traceback."""
    code = (
        "from pathlib import Path; from pipeline.recipe.base import Base\n"
        "from pipeline.errors import RequestError\n"
        "from pipeline.models.configurations import fetched_configurations\n"
        f"try: fetched_configurations(Base(checkpoint=Path({str(tiny.file)!r})))\n"
        "except RequestError as error: print(error)\n"
    )
    environment = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "PATH": ""}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert "Set [base].config to a diffusers folder" in shown.stdout and not shown.stderr
