"""Groups the keys of an adapter file by module, whatever program wrote them. Strings only.

    kohya, LyCORIS   NAME.lora_down.weight   NAME.hada_w1_a   NAME.lokr_w1   NAME.diff   NAME.w_norm
    diffusers, PEFT  NAME.lora_A.weight      NAME.lora_magnitude_vector      NAME.lora_B.bias
    PEFT, unsaved    NAME.lora_A.default.weight
    diffusers < 0.20 NAME.lora.down.weight   NAME_lora.down.weight   NAME.lora_linear_layer.…

A key is a module's name and one of SUFFIXES; what is neither is refused by name, never left out.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from merge.container import Entry
from merge.errors import MergeError, listed
from merge.families import what_is

SUFFIXES: Mapping[str, str] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.bias": "up_bias",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
    ".scalar": "scalar",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".hada_w1_a": "hada_w1_a",
    ".hada_w1_b": "hada_w1_b",
    ".hada_w2_a": "hada_w2_a",
    ".hada_w2_b": "hada_w2_b",
    ".hada_t1": "hada_t1",
    ".hada_t2": "hada_t2",
    ".lokr_w1": "lokr_w1",
    ".lokr_w1_a": "lokr_w1_a",
    ".lokr_w1_b": "lokr_w1_b",
    ".lokr_w2": "lokr_w2",
    ".lokr_w2_a": "lokr_w2_a",
    ".lokr_w2_b": "lokr_w2_b",
    ".lokr_t2": "lokr_t2",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "w_norm",
    ".b_norm": "b_norm",
}
"""What follows a module's name → the part of the module that the tensor is."""

REFUSED = (
    (r"\.oft_(blocks|diag|r|R)", "OFT or BOFT"),
    (r"\.(rescale|boft_[a-z]+)(\.|$)", "OFT or BOFT"),
    (r"\.(a1|a2|b1|b2)\.weight$", "GLoRA"),
    (r"\.(on_input|ia3_l)(\.|$)", "IA3"),
    (r"\.lora_embedding_[AB]", "LoRA on an embedding"),
    (r"\.vera_lambda_", "VeRA"),
    (r"\.(set_weight|reshape_weight)$", "ComfyUI's replaced weights"),
    (r"^bundle_emb\.", "a bundled embedding"),
)
"""How keys of forms that cannot be merged here look, and what the form is called."""

_START = re.compile(r"\.|_(?=lora\.)")
"""Where a suffix may begin."""


def grouped(path: Path, entries: Mapping[str, Entry]) -> dict[str, dict[str, Entry]]:
    """Each module's tensors by part, both in the file's order.

    Raises:
        MergeError: a key of no known form; a part given twice; no module at all.
    """
    found: dict[str, dict[str, Entry]] = defaultdict(dict)
    odd: list[str] = []
    for key, entry in entries.items():
        name = _name(key)
        if name is None:
            odd.append(key)
            continue
        parts, part = found[name], SUFFIXES[key[len(name) :]]
        if part in parts:
            raise MergeError(f"{path} says the same twice: {parts[part].name} and {key}.")
        parts[part] = entry
    if odd:
        _refuse(path, odd, list(entries), bool(found))
    if not found:
        raise MergeError(f"{path} holds no LoRA modules.")
    return dict(found)


def _name(key: str) -> str | None:
    """The key without its suffix, the longest one that fits."""
    for match in _START.finditer(key, 1):
        if key[match.start() :] in SUFFIXES:
            return key[: match.start()]
    return None


def _refuse(path: Path, odd: list[str], keys: list[str], some: bool) -> None:
    kinds = {meaning for key in odd for pattern, meaning in REFUSED if re.search(pattern, key)}
    if kinds:
        raise MergeError(
            f"{path} uses {' and '.join(sorted(kinds))} ({listed(odd, 4)}), which cannot be merged "
            "exactly here. LoRA, LoCon, DoRA, LoHa, LoKr, full differences and norms can."
        )
    if some:
        raise MergeError(
            f"{path} holds keys that belong to no known form of LoRA: {listed(odd, 4)}."
        )
    kind = what_is(keys)
    raise MergeError(
        f"{path} is not a LoRA: it holds {listed(odd, 3)} and looks like {kind}. "
        "Is it a checkpoint, given in the place of a LoRA?"
    )
