"""diffusers' classes ↔ single files: loaded by diffusers' own loaders, and back."""

import pytest
import torch
from safetensors.torch import load_file

from merge import MergeError, from_ldm, to_ldm

NAMES = ("tiny", "sd15", "odd", "sdxl", "sdxl_odd")


def states(base):
    modules = (base.unet, base.vae, base.text_encoder, base.text_encoder_2)
    return [module.state_dict() for module in modules if module is not None]


@pytest.mark.parametrize("name", NAMES)
def test_single_file_loads_with_every_weight_equal(tiny, load, state, name):
    base = tiny(name)
    loaded, expected = state(load(base)), state(base)
    assert loaded.keys() == expected.keys()
    assert any(key.startswith("text_encoder_2.text_projection") for key in loaded) == (
        base.text_encoder_2 is not None
    )
    for key, value in expected.items():
        assert torch.equal(loaded[key], value), key


@pytest.mark.parametrize(
    ("name", "samplers", "last"),
    [
        (
            "sd15",
            "input_blocks.3.0.op input_blocks.6.0.op input_blocks.9.0.op "
            "output_blocks.2.1.conv output_blocks.5.2.conv output_blocks.8.2.conv",
            # The key by which diffusers knows an SD 1 file.
            "output_blocks.11.0.skip_connection.weight",
        ),
        (
            "sdxl",
            "input_blocks.3.0.op input_blocks.6.0.op output_blocks.2.2.conv output_blocks.5.2.conv",
            "label_emb.0.2.bias",
        ),
    ],
)
def test_samplers_are_where_the_models_have_them(tiny, name, samplers, last):
    """diffusers reads an upsampler at index 1 and 2 alike; the tools that people use do not."""
    keys = {
        key.removeprefix("model.diffusion_model.")
        for key in load_file(tiny(name).file)
        if key.startswith("model.diffusion_model.")
    }
    found = {key for key in keys if key.endswith((".op.weight", ".conv.weight"))}
    assert found == {f"{sampler}.weight" for sampler in samplers.split()}
    assert last in keys


def test_openclip_is_as_sdxl_has_it(tiny):
    base = tiny("sdxl")
    prefix = "conditioner.embedders.1.model."
    tensors = load_file(base.file)
    found = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
    ours = base.text_encoder_2.state_dict()
    attention = "text_model.encoder.layers.1.self_attn"
    thirds = [ours[f"{attention}.{name}_proj.bias"] for name in "qkv"]
    assert torch.equal(found["transformer.resblocks.1.attn.in_proj_bias"], torch.cat(thirds))
    assert found["transformer.resblocks.1.attn.in_proj_weight"].shape == (72, 24)
    assert torch.equal(found["text_projection"], ours["text_projection.weight"].T)
    assert not torch.equal(found["text_projection"], ours["text_projection.weight"])
    assert found.keys() >= {"positional_embedding", "token_embedding.weight", "ln_final.bias"}


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(tiny, name):
    base = tiny(name)
    tensors = to_ldm(*states(base))
    parts = from_ldm({**tensors, "v_pred": torch.empty(0)})
    assert parts.rest.keys() == {"v_pred"}
    again = to_ldm(parts.unet, parts.vae, parts.text, parts.text_2 or None)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], value) for key, value in tensors.items())
    for found, module in (
        (parts.unet, base.unet),
        (parts.vae, base.vae),
        (parts.text_2, base.text_encoder_2),
    ):
        expected = {} if module is None else module.state_dict()
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key


def test_what_has_no_place_is_named(tiny):
    unet, vae, text, text_2 = states(tiny("sdxl"))
    with pytest.raises(MergeError, match=r"SD 1\.5 layout for text text_projection\.weight"):
        to_ldm(unet, vae, text_2)
    del text_2["text_model.encoder.layers.0.self_attn.k_proj.weight"]
    with pytest.raises(MergeError, match=r"resblocks\.0\.attn\.in_proj_weight .not all"):
        to_ldm(unet, vae, text, {**text_2, "visual.proj": torch.ones(1)})
    with pytest.raises(MergeError, match=r"unet who\.weight"):
        to_ldm({**unet, "who.weight": torch.ones(1)}, vae, text)
