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
    """Bytes: "cpu", the most that this process held so far; "gpu", where there is one."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"cpu": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.max_memory_allocated()
    return found
