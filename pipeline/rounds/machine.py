"""What a round ran on: versions of what computes it, and the most memory that it held."""

import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

COMPUTING = ("urushi", "torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes")


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide a round's bytes; those installed."""
    found = {"python": platform.python_version()}
    for name in COMPUTING:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_memory() -> dict[str, int]:
    """Bytes: "cpu", the most that this process or one that it waited for held so far; "gpu", the
    most of this process, where there is one: of judging alone, where training has its own."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    found = {"cpu": max(resource.getrusage(who).ru_maxrss for who in whose) * unit}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.max_memory_allocated()
    return found
