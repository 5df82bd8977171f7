"""OpenCLIP's names for a text encoder, which SDXL's single files keep, and transformers' names.

    transformer.resblocks.3.attn.in_proj_weight   text_model.encoder.layers.3.self_attn.{q,k,v}_proj
    transformer.resblocks.3.mlp.c_fc.weight       text_model.encoder.layers.3.mlp.fc1.weight
    text_projection (in, out)                     text_projection.weight (out, in)

Query, key and value are thirds of one tensor, the projection is transposed. Strings only.
"""

import re
from dataclasses import dataclass

ENDS = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
RESBLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
THIRDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
"""In the order in which in_proj holds them."""

TRANSPOSED = "text_projection"

_THEIRS = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_OURS = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_INVERSE = {ours: theirs for theirs, ours in RESBLOCK.items()}
_ENDS_INVERSE = {ours: theirs for theirs, ours in ENDS.items()}


@dataclass(frozen=True)
class Piece:
    """One tensor of transformers' layout, as a piece of OpenCLIP's."""

    key: str
    """transformers' key in `pieces`, OpenCLIP's in `piece_of`."""
    third: int | None = None
    """0, 1 or 2 where it is a third of the rows of in_proj."""
    transposed: bool = False


def pieces(key: str) -> tuple[Piece, ...]:
    """transformers' tensors that OpenCLIP's `key` holds: one, three, or none that is known."""
    if key in ENDS:
        return (Piece(ENDS[key], transposed=key == TRANSPOSED),)
    match = _THEIRS.fullmatch(key)
    if match is None:
        return ()
    number, name, kind = match.groups()
    prefix = f"text_model.encoder.layers.{number}"
    if name == "attn.in_proj":
        return tuple(Piece(f"{prefix}.{ours}.{kind}", i) for i, ours in enumerate(THIRDS))
    return (Piece(f"{prefix}.{RESBLOCK[name]}.{kind}"),) if name in RESBLOCK else ()


def piece_of(key: str) -> Piece | None:
    """Where OpenCLIP keeps transformers' `key`; None if it has no place there."""
    if key in _ENDS_INVERSE:
        theirs = _ENDS_INVERSE[key]
        return Piece(theirs, transposed=theirs == TRANSPOSED)
    match = _OURS.fullmatch(key)
    if match is None:
        return None
    number, name, kind = match.groups()
    prefix = f"transformer.resblocks.{number}"
    if name in THIRDS:
        return Piece(f"{prefix}.attn.in_proj_{kind}", THIRDS.index(name))
    return Piece(f"{prefix}.{_INVERSE[name]}.{kind}") if name in _INVERSE else None
