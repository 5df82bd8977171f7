"""A base into networks: frozen, in evaluation mode; offline if it has configurations. All are
float32, but for a UNet that is asked for in another type.

Single files and diffusers folders give the same networks. A round's checkpoint, in the layout of
its base, loads with the base's configurations.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, ModelMixin, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor

from pipeline.errors import RequestError
from pipeline.models.components import TEXTS, UNET, VAE, Component
from pipeline.models.configurations import SCHEDULER_FILE, fetched_configurations
from pipeline.models.encoders import load_reader
from pipeline.models.fitting import fitting, misfit, quiet
from pipeline.models.header import Header, read_header
from pipeline.models.inspect import BaseFacts, inspect, require_supported
from pipeline.models.layout import read_configuration, weights_of
from pipeline.models.schedule import sampling_scheduler, training_scheduler
from pipeline.models.text import Reader, TextStack
from pipeline.models.vae import vae_source
from pipeline.recipe.base import Base

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Network = TypeVar("Network", bound=ModelMixin)


def load_unet(
    base: Base, checkpoint: Path | None = None, dtype: torch.dtype = torch.float32
) -> UNet2DConditionModel:
    """The UNet of `base`, or of a round's `checkpoint` over it, its weights read into `dtype`:
    SDXL's take 10 GB in float32.

    Raises:
        RequestError: a file is missing or wrong, or weights and configurations do not fit.
    """
    _supported(base)
    return _network(UNet2DConditionModel, base, UNET, checkpoint, dtype)


def load_vae(
    base: Base, checkpoint: Path | None = None, override: Path | None = None
) -> AutoencoderKL:
    """The VAE: `override` (`[cache].vae`), else of `checkpoint` where that has one, else of `base`.

    Raises as `load_unet` does.
    """
    _supported(base)
    if override is None:
        return _network(AutoencoderKL, base, VAE, checkpoint, torch.float32)
    source = vae_source(base, override)
    return _frozen(
        AutoencoderKL, source.weights, source.configuration, source.component, torch.float32
    )


def load_text(base: Base, checkpoint: Path | None = None) -> TextStack:
    """Tokenizers and text encoders, of `checkpoint` where that has them. Raises as `load_unet`
    does."""
    facts = _supported(base)
    folder = fetched_configurations(base)
    readers = (
        load_reader(_source(base, checkpoint, text), folder, text) for text in TEXTS[facts.family]
    )
    stack = TextStack(tuple(readers), base.clip_skip, base.tokens // 75)
    if facts.family == "sdxl" and base.clip_skip != 1:
        raise RequestError(
            f"[base].clip_skip is {base.clip_skip}, and {facts.path} is of SDXL, which always "
            "reads the layer before the last. Take that line out."
        )
    return stack


def text_of(pipeline: Any, base: Base) -> TextStack:
    """A pipeline's own encoders, wherever they are now, reading as `base` says."""
    readers = [Reader(pipeline.tokenizer, pipeline.text_encoder)]
    if hasattr(pipeline, "text_encoder_2"):
        readers.append(Reader(pipeline.tokenizer_2, pipeline.text_encoder_2))
    return TextStack(tuple(readers), base.clip_skip, base.tokens // 75)


def load_scheduler(base: Base) -> DDPMScheduler:
    """The noise schedule and prediction type that the base was trained with."""
    facts = _supported(base)
    return training_scheduler(
        read_configuration(fetched_configurations(base) / SCHEDULER_FILE), facts
    )


def load_sampler(base: Base) -> DDIMScheduler:
    """Deterministic sampling of what the base predicts."""
    facts = _supported(base)
    return sampling_scheduler(
        read_configuration(fetched_configurations(base) / SCHEDULER_FILE), facts
    )


def load_pipeline(base: Base, checkpoint: Path | None = None) -> "DiffusionPipeline":
    """Everything that draws, with a DDIM scheduler and without a safety checker or bars."""
    facts = _supported(base)
    text = load_text(base, checkpoint)
    parts = {
        "vae": load_vae(base, checkpoint),
        "unet": load_unet(base, checkpoint),
        "scheduler": load_sampler(base),
        "text_encoder": text.readers[0].encoder,
        "tokenizer": text.readers[0].tokenizer,
        "feature_extractor": None,
    }
    pipeline: DiffusionPipeline
    with quiet():
        # Imported here: they ask for torchvision aloud, and only drawing needs them.
        if facts.family == "sdxl":
            from diffusers import StableDiffusionXLPipeline

            pipeline = StableDiffusionXLPipeline(
                **parts,
                text_encoder_2=text.readers[1].encoder,
                tokenizer_2=text.readers[1].tokenizer,
                add_watermarker=False,
            )
        else:
            from diffusers import StableDiffusionPipeline

            pipeline = StableDiffusionPipeline(
                **parts, safety_checker=None, requires_safety_checker=False
            )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _supported(base: Base) -> BaseFacts:
    facts = inspect(base)
    require_supported(facts)
    return facts


def _source(base: Base, checkpoint: Path | None, component: Component) -> Path:
    """The file or folder to take a component from: a round's file may hold the UNet alone."""
    if checkpoint is None or component is UNET:
        return checkpoint or base.checkpoint
    if checkpoint.is_dir():
        return checkpoint if (checkpoint / component.folder).is_dir() else base.checkpoint
    names = read_header(checkpoint).tensors
    return checkpoint if any(n.startswith(component.prefix) for n in names) else base.checkpoint


def _network(
    kind: type[Network],
    base: Base,
    component: Component,
    checkpoint: Path | None,
    dtype: torch.dtype,
) -> Network:
    source = _source(base, checkpoint, component)
    return _frozen(kind, source, fetched_configurations(base), component, dtype)


def _frozen(
    kind: type[Network], source: Path, folder: Path, component: Component, dtype: torch.dtype
) -> Network:
    with quiet():
        if source.is_dir():
            network = _from_folder(kind, source, component, dtype)
        else:
            network = _from_file(kind, source, folder, component, dtype)
    network.eval().requires_grad_(False)
    return network


def _from_folder(
    kind: type[Network], source: Path, component: Component, dtype: torch.dtype
) -> Network:
    variant = weights_of(source, component).variant
    network: Network
    with fitting(source, source, component):
        network, report = kind.from_pretrained(
            source,
            subfolder=component.folder,
            variant=variant,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    # diffusers fills what is missing with random numbers and drops what it does not know.
    astray = sorted([*report["missing_keys"], *report["unexpected_keys"]])
    if astray:
        raise misfit(source, source, component, f"{len(astray)} names differ, such as {astray[0]}")
    return network


def _from_file(
    kind: type[Network], source: Path, folder: Path, component: Component, dtype: torch.dtype
) -> Network:
    header = read_header(source)
    network: Network
    with fitting(source, folder, component):
        network = kind.from_single_file(
            _tensors(source, _names(header, component)),
            config=str(folder),
            subfolder=component.folder,
            torch_dtype=dtype,
            local_files_only=True,
        )
    held = sum(header.tensors[name].elements for name in _counted(header, component))
    taken = sum(tensor.numel() for tensor in network.state_dict().values())
    # diffusers drops layers that the configuration does not have without an error.
    if held != taken:
        raise misfit(
            source, folder, component, f"{held:,} weights in the file, {taken:,} by configuration"
        )
    return network


def _names(header: Header, component: Component) -> list[str]:
    """The component's tensors; all, where a file holds one component in diffusers' own names."""
    names = [name for name in header.tensors if name.startswith(component.prefix)]
    return names or list(header.tensors)


def _counted(header: Header, component: Component) -> list[str]:
    parts = tuple(component.prefix + part for part in component.parts)
    names = _names(header, component)
    return [n for n in names if n.startswith(parts) or not n.startswith(component.prefix)]


def _tensors(path: Path, names: list[str]) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}
