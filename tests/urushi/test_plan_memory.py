import json
import struct
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import BuildRecipe
from pipeline.recipe.base import Base
from pipeline.recipe.build import DatasetSource
from urushi.plan_memory import ACTIVATIONS, CHECKPOINTED, OTHER, memory_lines, training_memory


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """A header of an SD 1.5 whose UNet has a first layer of 320 channels, one attention layer and
    the marks of a residual block wherever one must be; the tensors' bytes are a hole in the file.
    """
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": [320, 320],
        **{
            f"model.diffusion_model.{block}.in_layers.2.weight": [1]
            for block in (
                "input_blocks.1.0",
                "middle_block.0",
                "middle_block.2",
                "output_blocks.0.0",
            )
        },
        "first_stage_model.decoder.conv_in.weight": [1],
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": [1],
    }
    header, place = {}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    path = tmp_path / "base.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    return Base(checkpoint=path)


def recipe(base: Base, **sections: Any) -> BuildRecipe:
    return BuildRecipe.model_validate(
        {
            "name": "coat",
            "base": base,
            "dataset": DatasetSource(recipe=Path("pictures.toml")),
            "rounds": {"steps": [10]},
            "resize": {"resolution": 512},
            "lora": {"rank": 8},
            **sections,
        }
    )


def test_every_part_worked_by_hand(base: Base) -> None:
    memory = training_memory(recipe(base, train={"batch_size": 2, "optimizer": "adamw8bit"}))
    assert memory is not None
    assert memory.weights == 2 * (320 * 4 * 9 + 320 * 320 + 4)
    # Rank 8 on 320 x 320 in float32, with its alpha: factors, gradients, and 2 bytes a parameter.
    factors = 4 * (8 * (320 + 320) + 1)
    assert memory.lora == round(factors * 2.5)
    assert memory.activations == ACTIVATIONS["sd15"] * 64 * 64 * 2
    assert memory.total == memory.weights + memory.lora + memory.activations + OTHER


def test_what_costs_more_and_what_costs_less(base: Base) -> None:
    plain = training_memory(recipe(base))
    assert plain is not None
    for train, part, factor in (
        ({"batch_size": 4}, "activations", 4),
        ({"precision": "float32"}, "weights", 2),
        ({"precision": "float32"}, "activations", 2),
        ({"gradient_checkpointing": True}, "activations", CHECKPOINTED / ACTIVATIONS["sd15"]),
        ({"optimizer": "adamw"}, "lora", 4 / 2.5),
        ({"ema_decay": 0.99}, "lora", 3.5 / 2.5),
    ):
        other = training_memory(recipe(base, train=train))
        assert other is not None
        assert getattr(other, part) == pytest.approx(getattr(plain, part) * factor), train
    larger = training_memory(recipe(base, resize={"resolution": 1024}))
    assert larger and larger.activations == 4 * plain.activations


def test_text_encoders_that_learn_are_counted(base: Base) -> None:
    """The base's has one norm of one weight, in 2 bytes, and nothing that a LoRA adapts."""
    learning = recipe(base, train={"text_encoder_rate": 0.5})
    memory, plain = training_memory(learning), training_memory(recipe(base))
    assert memory is not None and plain is not None
    assert (plain.text, memory.text, memory.lora) == (0, 2, plain.lora)
    assert memory.total == plain.total + 2
    assert ", text encoders 2 B, LoRA" in next(memory_lines(learning))


def test_checkpointing_is_offered_where_it_is_off_and_nothing_without_a_base(base: Base) -> None:
    off = list(memory_lines(recipe(base)))
    assert off[0].startswith("about 2.09 GB to train with: UNet 228 kB, LoRA")
    assert "gradient_checkpointing = true" in off[1]
    assert len(list(memory_lines(recipe(base, train={"gradient_checkpointing": True})))) == 1
    nowhere = recipe(Base(checkpoint=Path("/none.safetensors")))
    assert list(memory_lines(nowhere)) == ["unknown without the base"]
