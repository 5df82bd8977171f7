"""What peft's configuration says of an adapter beside its tensors: alphas, patterns, scaling.

Of a folder (adapter_config.json beside adapter_model.safetensors), or of a file of diffusers, whose
metadata has one for each component under `lora_adapter_metadata`.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge.errors import MergeError

METADATA = "lora_adapter_metadata"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")

ALPHAS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""peft_type → what the configuration calls alpha. OFT, IA3, … are other forms."""

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` whose factors go with a base that was changed as well."""
OTHER_SUMS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
"""Settings under which the adapter is not W + scale · B · A of the layers as they are."""

LITERAL = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class Told:
    """What a configuration says of one module. alpha: None where nothing is said.

    rank: must be that of the tensors; what alpha is divided by where they have none: LoKr of two
    whole factors.
    dora: there must be a magnitude.
    """

    alpha: float | None = None
    rank: int | None = None
    rslora: bool = False
    dora: bool = False

    def scale(self, rank: int) -> float:
        """alpha / rank; rsLoRA (arXiv:2312.03732) divides by the root of it; 1 without alpha."""
        if self.alpha is None:
            return 1.0
        return self.alpha / (math.sqrt(rank) if self.rslora else rank)


@dataclass(frozen=True)
class Pattern:
    """peft's alpha_pattern or rank_pattern: (ends of) names, as regular expressions, in order.

    Literal ends are looked up, for a file may have a thousand of them and a thousand modules.
    """

    numbers: Mapping[str, float]
    order: Mapping[str, int] = field(init=False)
    expressions: Mapping[str, re.Pattern[str]] = field(init=False)

    def __post_init__(self) -> None:
        """Raises re.error: an expression that is none."""
        literal = {key for key in self.numbers if LITERAL.fullmatch(key)}
        object.__setattr__(self, "order", {key: n for n, key in enumerate(self.numbers)})
        object.__setattr__(
            self,
            "expressions",
            {k: re.compile(rf"(.*\.)?({k})") for k in self.numbers if k not in literal},
        )

    def of(self, name: str) -> float | None:
        """The number of the first key that the name, or its end after a dot, matches."""
        if not self.numbers:
            return None
        words = name.split(".")
        ends = (".".join(words[first:]) for first in range(len(words)))
        found = [end for end in ends if end in self.numbers and end not in self.expressions]
        found += [key for key, pattern in self.expressions.items() if pattern.fullmatch(name)]
        return self.numbers[min(found, key=self.order.__getitem__)] if found else None


@dataclass(frozen=True)
class AdapterConfig:
    """One configuration, checked."""

    alpha: float
    rank: int | None
    rslora: bool
    dora: bool
    alphas: Pattern
    ranks: Pattern

    def of(self, name: str) -> Told:
        """name: of the module, without its component."""
        alpha, rank = self.alphas.of(name), self.ranks.of(name)
        return Told(
            self.alpha if alpha is None else alpha,
            self.rank if rank is None else int(rank),
            self.rslora,
            self.dora,
        )


def of_folder(folder: Path) -> AdapterConfig:
    """The configuration in peft's folder.

    Raises:
        MergeError: none there, not JSON, another form, an initialisation that changed the base.
    """
    path = folder / CONFIG
    if not (folder / WEIGHTS).is_file() or not path.is_file():
        raise MergeError(
            f"{folder} is a folder without {WEIGHTS} and {CONFIG}: no adapter of PEFT's in the "
            "form of safetensors. Name a LoRA file, or save the adapter again."
        )
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise MergeError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    except (ValueError, RecursionError):
        raise MergeError(f"{path} is not JSON. Get it again.") from None
    return _config(str(path), fields, "")


def of_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, AdapterConfig]:
    """Component → its configuration, of a file's metadata; raises MergeError as `of_folder`."""
    if METADATA not in metadata:
        return {}
    where = f"{METADATA} in {path}"
    try:
        fields = json.loads(metadata[METADATA])
    except (ValueError, RecursionError):
        raise MergeError(f"{where} is not JSON. Get the file again.") from None
    if not isinstance(fields, dict):
        raise MergeError(f"{where} is not a table. Get the file again.")
    found = {}
    for component in COMPONENTS:
        prefix = f"{component}."
        own = {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}
        if own:
            found[component] = _config(where, own, prefix)
    return found


def _config(where: str, fields: Any, prefix: str) -> AdapterConfig:
    if not isinstance(fields, dict):
        raise MergeError(f"{where} is not a table. Get it again.")
    kind = fields.get("peft_type") or "LORA"
    if kind not in ALPHAS:
        raise MergeError(
            f"{where} is of the form {kind!r}, which cannot be merged exactly here; "
            f"{', '.join(ALPHAS)} can."
        )
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise MergeError(
            f"{prefix}init_lora_weights in {where} is {start!r}, which changed the base as well. "
            "Save the adapter with path_initial_model_for_weight_conversion."
        )
    strange = [name for name in OTHER_SUMS if fields.get(name)]
    if strange:
        raise MergeError(
            f"{', '.join(prefix + name for name in strange)} in {where}: such an adapter cannot be "
            "merged exactly here."
        )
    alpha: Any = fields.get(ALPHAS[kind])
    rank: Any = fields.get("r")
    if not _number(alpha) or not (rank is None or _rank(rank)):
        raise MergeError(
            f"{prefix}{ALPHAS[kind]} and {prefix}r in {where} are {alpha!r} and {rank!r}; "
            "expected a number and a whole number of at least 1."
        )
    return AdapterConfig(
        float(alpha),
        None if rank is None else int(rank),
        fields.get("use_rslora") is True,
        fields.get("use_dora") is True,
        _pattern(where, f"{prefix}alpha_pattern", fields.get("alpha_pattern"), _number),
        _pattern(where, f"{prefix}rank_pattern", fields.get("rank_pattern"), _rank),
    )


def _pattern(where: str, name: str, numbers: Any, fits: Callable[[Any], bool]) -> Pattern:
    if not isinstance(numbers or {}, dict) or not all(map(fits, (numbers or {}).values())):
        raise MergeError(f"{name} in {where} is not a table of such numbers. Get it again.")
    try:
        return Pattern(numbers or {})
    except re.error as error:
        raise MergeError(f"{name} in {where} has a pattern that is none: {error}.") from None


def _number(value: Any) -> bool:
    # JSON has NaN here, and whole numbers that no float holds.
    return type(value) in (int, float) and abs(value) < 1e30


def _rank(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31
