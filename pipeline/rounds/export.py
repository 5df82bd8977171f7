"""A build's final model for other programs: another dtype, another VAE, a diffusers folder.

    urushi export BUILD --out FILE [--dtype float16] [--vae FILE] [--folder]

Summed from the origin in float32 and cast once, as the final checkpoint is, whose own bytes stay
those that the ledger names. What was written is loaded again with diffusers before it is given.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

import merge
from merge.mix import mix
from merge.mix_recipe import Amount, MixRecipe, Step
from pipeline.artefacts.files import translated
from pipeline.errors import RequestError, UrushiError
from pipeline.models.fitting import quiet
from pipeline.models.load import load_pipeline, load_vae
from pipeline.models.vae import vae_source
from pipeline.recipe.base import Base
from pipeline.rounds.rebuild import Plan

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

OnTensor = Callable[[int, int], None]
WHOLE = Amount(1.0, 1.0, 1.0, 1.0)
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


def export(
    made_of: Plan,
    base: Base,
    out: Path,
    *,
    dtype: str = "float16",
    vae: Path | None = None,
    folder: bool = False,
    on_tensor: OnTensor | None = None,
) -> None:
    """Writes the model that `made_of` says to `out`, whole or not at all.

    Args:
        base: how the origin is read: its configurations.
        dtype: "float16", "bfloat16" or "float32" of all weights.
        vae: takes the place of the origin's: a file or folder, as [cache].vae has it.
        folder: as a diffusers folder; from an origin that is one, `out` always is.
        on_tensor: called with (tensors merged, tensors in all).

    Raises:
        RequestError: `out` is there already, or the VAE belongs to another family.
        UrushiError: what was written does not load, or holds numbers that are none.
        MergeError: no room (3), or no permission (2).
    """
    if out.exists():
        raise RequestError(f"--out {out} is there already. Move it away, or name another.")
    origin = made_of.origin.checkpoint
    base = base.model_copy(update={"checkpoint": origin})
    if vae is not None:
        # Refuses a wrong one before the long part.
        _require_fitting(base, vae, single=not (folder or origin.is_dir()))
    with translated(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as beside:
            whole, merged = Path(beside, f"whole{out.suffix}"), Path(beside, f"sum{origin.suffix}")
            if origin.is_dir():
                _merge(made_of, whole, dtype, on_tensor)
                if vae is not None:
                    with quiet():
                        load_vae(base, None, vae).to(_torch(dtype)).save_pretrained(whole / "vae")
            elif folder:
                _merge(made_of, merged, "float32", on_tensor)
                pipeline = load_pipeline(base, merged)
                if vae is not None:
                    pipeline.vae = load_vae(base, None, vae)
                with quiet():
                    pipeline.to(_torch(dtype)).save_pretrained(whole)
            elif vae is None:
                _merge(made_of, whole, dtype, on_tensor)
            else:
                _merge(made_of, merged, dtype, on_tensor)
                _with_vae(base, merged, vae, dtype, whole)
            _require_sound(base, whole, out)
            whole.rename(out)


def _merge(made_of: Plan, out: Path, dtype: str, on_tensor: OnTensor | None) -> None:
    origin = made_of.origin
    merge.merge(
        origin.checkpoint,
        [link.addend for link in made_of.links],
        out,
        dtype=dtype,
        metadata={"urushi.build": origin.build},
        on_tensor=on_tensor,
        identities={
            origin.checkpoint: origin.blake3,
            **{link.lora: link.blake3 for link in made_of.links},
        },
    )


def _require_fitting(base: Base, vae: Path, *, single: bool) -> None:
    """Raises RequestError for a VAE that `base` cannot have; with `single`, for several files."""
    try:
        files = vae_source(base, vae).files
    except RequestError as error:  # Who asks here wrote no recipe.
        raise RequestError(str(error).replace("[cache].vae", "--vae")) from None
    if single and len(files) != 1:
        raise RequestError(
            f"--vae {vae} is in {len(files)} files. Name one of a single file, or add --folder."
        )


def _with_vae(base: Base, merged: Path, vae: Path, dtype: str, out: Path) -> None:
    """`merged`, a single file, with the VAE of a file or folder in the place of its own."""
    (file,) = vae_source(base, vae).files
    models = {"model": merged, "vae": file}
    mix(MixRecipe(models, (Step("out", "sum", ("model",), (WHOLE,)),), "vae", dtype), out)


def _require_sound(base: Base, written: Path, out: Path) -> None:
    """Loads what was written with diffusers, and looks at every number."""
    config = None if written.is_dir() else base.config
    pipeline = load_pipeline(base.model_copy(update={"checkpoint": written, "config": config}))
    wrong = [
        f"{name}.{key}"
        for name in NETWORKS
        for key, tensor in _weights(pipeline, name).items()
        if not bool(torch.isfinite(tensor).all())
    ]
    if wrong:
        raise UrushiError(
            f"{out} was not written: {len(wrong)} of its weights, such as {wrong[0]}, hold numbers "
            "too large for its dtype. Use --dtype bfloat16 or float32."
        )


def _weights(pipeline: "DiffusionPipeline", name: str) -> dict[str, torch.Tensor]:
    network = getattr(pipeline, name, None)
    return {} if network is None else dict(network.state_dict())


def _torch(dtype: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, dtype)
    return found
