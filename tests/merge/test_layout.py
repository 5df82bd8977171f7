"""Every layer is found, under every name, where its bytes really are."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from merge import MergeError
from merge.arithmetic import tensor_of
from merge.layout import look
from merge.layout_folder import left_out

NAMES = ("tiny", "sd15", "odd", "sdxl", "sdxl_odd")
NETWORKS = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}


def stored(base, place):
    """The numbers at a place, as the layer has them: its own rows, (out, in)."""
    part = base.parts[place.part]
    entry = part.header.entries[place.key]
    with part.reader() as reader:
        numbers = tensor_of(reader.read(entry), entry.dtype).reshape(entry.shape)
    rows = numbers[place.first : place.first + place.rows]
    return rows.T if place.transposed else rows


def real_layers(tiny):
    """Layer name → module, of the models themselves."""
    found = {}
    for network, attribute in NETWORKS.items():
        model = getattr(tiny, attribute)
        for name, module in model.named_modules() if model is not None else ():
            if not isinstance(module, nn.Embedding) and getattr(module, "weight", None) is not None:
                if network != "unet" and not name.startswith(("text_model", "text_projection")):
                    name = f"text_model.{name}"
                found[f"{network}.{name}"] = module
    return found


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_lies_where_it_says(tiny, name, kind):
    pipeline = tiny(name)
    base = look(getattr(pipeline, kind))
    assert base.family == ("sdxl" if name.startswith("sdxl") else "sd15")
    assert base.folder == (kind == "folder")
    expected = real_layers(pipeline)
    assert base.layers.keys() == expected.keys()
    for key, module in expected.items():
        layer = base.layers[key]
        assert layer.name == key and key.startswith(f"{layer.network}.")
        assert layer.shape == (*module.weight.shape,)
        (weight,) = layer.weight
        assert torch.equal(stored(base, weight), module.weight), key
        assert len(layer.bias) == (module.bias is not None)
        for bias in layer.bias:
            assert torch.equal(stored(base, bias), module.bias), key


@pytest.mark.parametrize("name", NAMES)
def test_file_and_folder_agree(tiny, name):
    one, many = look(tiny(name).file), look(tiny(name).folder)
    assert {k: (v.block, v.shape) for k, v in one.layers.items()} == {
        k: (v.block, v.shape) for k, v in many.layers.items()
    }
    assert one.spellings == many.spellings


def test_spellings_of_sd15(tiny):
    names = look(tiny("sd15").file).spellings
    attention = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    inside = "transformer_blocks_0_attn1_to_out_0"
    for spelled in (
        f"lora_unet_down_blocks_1_attentions_0_{inside}",
        f"lycoris_down_blocks_1_attentions_0_{inside}",
        f"lora_unet_input_blocks_4_1_{inside}",
        attention,
        attention.removeprefix("unet."),
        attention.replace("unet.", "base_model.model."),
        "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_out.0",
    ):
        assert names[spelled] == attention
    text = "te1.text_model.encoder.layers.1.self_attn.q_proj"
    for spelled in (
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj",
        "lora_te1_text_model_encoder_layers_1_self_attn_q_proj",
        "text_encoder.text_model.encoder.layers.1.self_attn.q_proj",
        "text_encoder.encoder.layers.1.self_attn.q_proj",
        "base_model.model.text_model.encoder.layers.1.self_attn.q_proj",
    ):
        assert names[spelled] == text
    assert not any(spelled.startswith(("lora_te2_", "text_encoder_2.")) for spelled in names)


def test_spellings_of_sdxl(tiny):
    names = look(tiny("sdxl").file).spellings
    for spelled, layer in {
        "lora_unet_input_blocks_8_1_transformer_blocks_1_ff_net_0_proj": (
            "unet.down_blocks.2.attentions.1.transformer_blocks.1.ff.net.0.proj"
        ),
        "lora_unet_output_blocks_2_2_conv": "unet.up_blocks.0.upsamplers.0.conv",
        "lora_unet_up_blocks_0_upsamplers_0_conv": "unet.up_blocks.0.upsamplers.0.conv",
        "lora_unet_label_emb_0_2": "unet.add_embedding.linear_2",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": "te1.text_model.encoder.layers.0.mlp.fc1",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": "te2.text_model.encoder.layers.0.mlp.fc1",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": (
            "te1.text_model.encoder.layers.0.mlp.fc1"
        ),
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1": (
            "te2.text_model.encoder.layers.0.mlp.fc1"
        ),
        "lora_te2_text_projection": "te2.text_projection",
        "text_encoder_2.text_projection": "te2.text_projection",
    }.items():
        assert names[spelled] == layer
    # One encoder's name, or none: which of the two is not said.
    assert not any(name.startswith(("lora_te_", "base_model.model.text_model")) for name in names)


@pytest.mark.parametrize(("name", "last"), [("sd15", 11), ("sdxl", 8)])
def test_blocks(tiny, name, last):
    layers = look(tiny(name).file).layers
    numbers = range(last + 1)
    expected = {"BASE", "M00", *(f"{side}{i:02}" for side in ("IN", "OUT") for i in numbers)}
    assert {layer.block for layer in layers.values()} == expected
    assert {layer.block for layer in layers.values() if layer.network != "unet"} == {"BASE"}
    for module, block in {
        "conv_in": "IN00",
        "time_embedding.linear_1": "IN00",
        "down_blocks.0.resnets.0.conv1": "IN01",
        "down_blocks.0.downsamplers.0.conv": "IN03",
        "down_blocks.1.attentions.1.proj_in": "IN05",
        "mid_block.resnets.1.norm2": "M00",
        "up_blocks.0.resnets.0.conv1": "OUT00",
        "up_blocks.0.upsamplers.0.conv": "OUT02",
        "conv_norm_out": f"OUT{last:02}",
        "conv_out": f"OUT{last:02}",
    }.items():
        assert layers[f"unet.{module}"].block == block


def test_weights_are_all_that_is_the_models(tiny):
    part = look(tiny("sdxl").file).parts[0]
    assert part.header.entries.keys() - part.weights == {"v_pred", "ztsnr", "stranger.in_the_file"}
    for part in look(tiny("sdxl").folder).parts:
        assert part.header.entries.keys() == part.weights


def test_the_moving_average_is_a_second_place(tiny, tmp_path):
    tensors = load_file(tiny("sdxl").file)
    name = "model.diffusion_model.label_emb.0.0"
    twin = "model_ema.diffusion_modellabel_emb00"
    tensors |= {f"{twin}{end}": tensors[f"{name}.{end}"].clone() for end in ("weight", "bias")}
    tensors["model_ema.decay"] = torch.tensor(0.5)
    save_file(tensors, tmp_path / "ema.safetensors")
    base = look(tmp_path / "ema.safetensors")
    layer = base.layers["unet.add_embedding.linear_1"]
    assert {place.key for place in layer.weight} == {f"{name}.weight", f"{twin}weight"}
    assert {place.key for place in layer.bias} == {f"{name}.bias", f"{twin}bias"}
    assert f"{twin}weight" in base.parts[0].weights
    assert "model_ema.decay" not in base.parts[0].weights

    tensors[f"{twin}weight"] = torch.ones(3, 3)
    save_file(tensors, tmp_path / "ema.safetensors")
    with pytest.raises(MergeError, match=r"label_emb00weight has the shape \[3, 3\]"):
        look(tmp_path / "ema.safetensors")


def test_thirds_are_of_three(tiny, tmp_path):
    tensors = load_file(tiny("sdxl").file)
    key = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    tensors[key] = tensors[key][:-1].contiguous()
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(MergeError, match="in_proj_weight has 71 rows"):
        look(tmp_path / "odd.safetensors")


def variant(folder, target, component, names):
    """A copy of a pipeline whose component's file is renamed, or split as an index says."""
    shutil.copytree(folder, target)
    (source,) = (target / component).glob("*.safetensors")
    if len(names) == 1:
        source.rename(target / component / names[0])
        return target
    tensors = load_file(source)
    source.unlink()
    index, *shards = names
    places = {key: shards[i % len(shards)] for i, key in enumerate(sorted(tensors))}
    for shard in shards:
        inside = {key: tensors[key] for key, place in places.items() if place == shard}
        save_file(inside, target / component / shard)
    content = {"metadata": {"total_size": 1}, "weight_map": places}
    (target / component / index).write_text(json.dumps(content))
    return target


SHARDS = ("model.safetensors.index.json", "model-00001-of-00002.safetensors")
SHARDS = (*SHARDS, "model-00002-of-00002.safetensors")
FORMS = {
    "fp16": ("unet", ("diffusion_pytorch_model.fp16.safetensors",)),
    "shards": ("text_encoder_2", SHARDS),
    "fp16 shards": (
        "unet",
        (
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model.fp16-00001-of-00003.safetensors",
            "diffusion_pytorch_model.fp16-00002-of-00003.safetensors",
            "diffusion_pytorch_model.fp16-00003-of-00003.safetensors",
        ),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_variants_and_shards_of_folders(tiny, tmp_path, form):
    component, names = FORMS[form]
    pipeline = tiny("sdxl")
    folder = variant(pipeline.folder, tmp_path / "copy", component, names)
    (folder / component / "pytorch_model.bin").write_bytes(b"stale")
    base = look(folder)
    expected = real_layers(pipeline)
    assert base.layers.keys() == expected.keys()
    for key, module in expected.items():
        assert torch.equal(stored(base, base.layers[key].weight[0]), module.weight), key
    files = {name for name in names if name.endswith(".safetensors")}
    assert {part.place for part in base.parts if part.place.startswith(f"{component}/")} == {
        f"{component}/{name}" for name in files
    }
    kept = {
        path.name
        for path in (folder / component).iterdir()
        if not left_out(base, path.relative_to(folder))
    }
    assert kept == {"config.json"} | {name for name in names if name.endswith(".json")}


def test_stale_forms_are_left_out(tiny, tmp_path):
    folder = variant(tiny("sdxl").folder, tmp_path / "copy", "vae", FORMS["fp16"][1])
    index = "diffusion_pytorch_model.safetensors.index.fp16.json"
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"stale")
    (folder / "unet" / "x.safetensors.index.json").write_text("broken")
    (folder / "unet" / index).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    base = look(folder)
    found = {
        str(path.relative_to(folder)): left_out(base, path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert (
        found["unet/x.safetensors.index.json"] and found["unet/diffusion_pytorch_model.safetensors"]
    )
    assert found[f"unet/{index}"] and found["unet/diffusion_pytorch_model.fp16.safetensors"]
    assert found["vae/diffusion_pytorch_model.fp16.safetensors"]
    assert not found["model_index.json"] and not found["scheduler/scheduler_config.json"]


@pytest.mark.parametrize(
    ("component", "files", "words"),
    [
        ("unet", {}, "no unet/diffusion_pytorch_model.safetensors"),
        ("unet", {"diffusion_pytorch_model.bin": ""}, r"diffusion_pytorch_model\.bin.*not read"),
        ("text_encoder", {"pytorch_model.bin": ""}, r"text_encoder holds no model\.safetensors"),
        ("unet", {"diffusion_pytorch_model.safetensors.index.json": "{}"}, "no index of shards"),
        (
            "unet",
            {
                "diffusion_pytorch_model.safetensors.index.json": json.dumps(
                    {"weight_map": {"a": "../other.safetensors"}}
                )
            },
            "no index of shards",
        ),
        ("text_encoder", {SHARDS[0]: json.dumps({"weight_map": {"a": SHARDS[1]}})}, SHARDS[1]),
        (
            "vae",
            dict.fromkeys(
                (f"{FORMS['fp16'][1][0]}", "diffusion_pytorch_model.non_ema.safetensors"), ""
            ),
            "several forms",
        ),
    ],
)
def test_folders_that_cannot_be_read(tiny, tmp_path, component, files, words):
    folder = tmp_path / "copy"
    shutil.copytree(tiny("tiny").folder, folder)
    for path in (folder / component).glob("*.safetensors"):
        path.unlink()
    for name, content in files.items():
        (folder / component / name).write_text(content)
    with pytest.raises(MergeError, match=words) as caught:
        look(folder)
    assert str(folder) in str(caught.value) and caught.value.exit_code == 2


def test_whole_and_shards_side_by_side_are_not_guessed_at(tiny, tmp_path):
    folder = variant(tiny("sdxl").folder, tmp_path / "copy", "text_encoder_2", SHARDS)
    shutil.copy(folder / "text_encoder" / "model.safetensors", folder / "text_encoder_2")
    with pytest.raises(MergeError, match=r"model\.safetensors, model\.safetensors\.index\.json"):
        look(folder)
