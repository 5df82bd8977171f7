"""Safetensors bytes into the same bytes every time.

The format's writer keeps metadata in a hash map whose order changes from process to process, so two
files of the same content differ. Here metadata are put in order of their names.
"""

import json
import struct


def ordered(content: bytes) -> bytes:
    """A whole safetensors file with its metadata sorted; tensors and their offsets stay."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # The format asks that tensors start on eight bytes.
    return struct.pack("<Q", len(text)) + text + content[8 + length :]
