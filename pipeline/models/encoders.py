"""A text encoder's weights and configuration into a Reader: every layout that checkpoints keep it
in."""

from pathlib import Path

from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipeline.errors import RequestError
from pipeline.models.components import TextComponent
from pipeline.models.fitting import fitting, quiet
from pipeline.models.header import read_header
from pipeline.models.layout import weights_of
from pipeline.models.text import Reader

PARTS = ("embeddings.", "encoder.", "final_layer_norm.", "text_projection.")
"""What an encoder's own tensors begin with, bare of `text_model.`."""
PROJECTION = "text_projection."


def load_reader(source: Path, folder: Path, component: TextComponent) -> Reader:
    """The encoder in `source` (a single file or diffusers folder), float32, frozen.

    Args:
        folder: the diffusers folder with the configuration and the tokenizer.

    Raises:
        RequestError: a file is missing or wrong, or they do not fit one another.
    """
    with quiet(), fitting(source, folder, component):
        config = CLIPTextConfig.from_pretrained(folder / component.folder, local_files_only=True)
        # Built empty: drawing weights to throw away would cost time and move torch's generator.
        with init_empty_weights():
            kind = CLIPTextModelWithProjection if component.openclip else CLIPTextModel
            encoder = kind(config)
        encoder.load_state_dict(_tensors(source, component, encoder), strict=True, assign=True)
        tokenizer = CLIPTokenizer.from_pretrained(
            folder / component.tokenizer, local_files_only=True
        )
    if not 2 < len(tokenizer) <= config.vocab_size:
        raise RequestError(
            f"The tokenizer in {folder / component.tokenizer} has {len(tokenizer)} tokens, and the "
            f"{component.title} in {source} {config.vocab_size}. "
            "Set [base].config to the checkpoint's own folder."
        )
    return Reader(tokenizer, encoder.float().eval().requires_grad_(False))


def _tensors(
    source: Path, component: TextComponent, encoder: CLIPTextModel | CLIPTextModelWithProjection
) -> dict[str, Tensor]:
    """The encoder's tensors by the names of its state dict.

    Files of every age are met: with and without `text_model.`, with `position_ids`, which is no
    weight, and with a projection that this encoder does not have.
    """
    if source.is_dir():
        held = _read(weights_of(source, component).files, "")
    elif component.openclip:
        # Transposes the projection: the file's is applied from the right.
        prefix = f"{component.prefix}model."
        held = convert_open_clip_checkpoint(encoder, _read((source,), prefix), prefix=prefix)
    else:
        prefix = f"{component.prefix}transformer."
        held = {k.removeprefix(prefix): v for k, v in _read((source,), prefix).items()}
    names = encoder.state_dict()
    nested = any(name.startswith("text_model.") for name in names)
    projected = any(name.startswith(PROJECTION) for name in names)
    tensors: dict[str, Tensor] = {}
    for name, tensor in held.items():
        bare = name.removeprefix("text_model.")
        if not bare.startswith(PARTS) or bare.endswith("position_ids"):
            continue
        if bare.startswith(PROJECTION):
            if projected:
                tensors[bare] = tensor
        else:
            tensors[f"text_model.{bare}" if nested else bare] = tensor
    return tensors


def _read(files: tuple[Path, ...], prefix: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in files:
        names = [name for name in read_header(path).tensors if name.startswith(prefix)]
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in names}
    return tensors
