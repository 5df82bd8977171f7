from pathlib import Path
from typing import Any

import pytest

from pipeline.artefacts.files import write_text
from pipeline.artefacts.ledger import GrowthFile, LayerRow
from pipeline.artefacts.workspace import BuildFolder
from pipeline.preview.weights import block_of, read_growths, weights


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("lora_unet_down_blocks_1_attentions_0_proj_in", "down 1"),
        ("lora_unet_mid_block_resnets_0_conv1", "middle"),
        ("lora_unet_output_blocks_11_1_proj_out", "out 11"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "text"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "text 2"),
        ("something_else", "other"),
    ],
)
def test_a_layers_block(module: str, block: str) -> None:
    assert block_of(module) == block


def test_blocks_are_shown_in_the_order_of_the_flow_by_root_mean_square(
    make: Any, tmp_path: Path
) -> None:
    folder = BuildFolder(tmp_path)
    layers = tuple(
        LayerRow(module=name, relative=r, total=2 * r, effective_rank=3.0, intruders=None)
        for name, r in (
            ("lora_unet_up_blocks_0_attentions_0_proj_in", 0.2),
            ("lora_unet_down_blocks_0_attentions_0_proj_in", 0.03),
            ("lora_unet_down_blocks_0_attentions_0_proj_out", 0.04),
        )
    )
    grown = GrowthFile(cosines={}, layers=layers)
    write_text(folder.round(1).growth, grown.model_dump_json())
    ledger = make.ledger(make.row(1), make.row(2, strength=0, decision="rejected"))
    growths = read_growths(folder, ledger)
    assert list(growths) == [1]
    page = weights(ledger, growths)
    # The root of (0.03² + 0.04²) / 2 is 0.0354, and twice that together.
    assert page.index("3.5 %") < page.index("7.1 %") < page.index("20 %") < page.index("40 %")
    assert page.index("down 0") < page.index("up 0")
    assert weights(make.ledger(), {}) == ""
    assert "Which blocks moved" not in weights(ledger, {})
