"""The optimizers that [train].optimizer may name, as tables one can read; no class is imported.

A name is that of a class in lower case. Whatever is not listed is named by its dotted path.
"""

import difflib
from typing import Annotated

from pydantic import AfterValidator

NAMED: tuple[tuple[str, str], ...] = (
    ("adamw", "torch.optim.AdamW"),
    ("adam", "torch.optim.Adam"),
    ("nadam", "torch.optim.NAdam"),
    ("rmsprop", "torch.optim.RMSprop"),
    ("sgd", "torch.optim.SGD"),
    ("adamw8bit", "bitsandbytes.optim.AdamW8bit"),
    ("pagedadamw8bit", "bitsandbytes.optim.PagedAdamW8bit"),
    ("pagedadamw", "bitsandbytes.optim.PagedAdamW"),
    ("adam8bit", "bitsandbytes.optim.Adam8bit"),
    ("ademamix8bit", "bitsandbytes.optim.AdEMAMix8bit"),
    ("lion", "bitsandbytes.optim.Lion"),
    ("lion8bit", "bitsandbytes.optim.Lion8bit"),
    ("pagedlion8bit", "bitsandbytes.optim.PagedLion8bit"),
)
"""(name in recipes, dotted path)."""

PYTORCH_OPTIMIZER = (
    *("AdaFactor", "Prodigy", "DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptLion"),
    *("DAdaptSGD", "ScheduleFreeAdamW", "ScheduleFreeRAdam", "ScheduleFreeSGD", "A2Grad"),
    *("ADOPT", "APOLLO", "ASGD", "AccSGD", "AdEMAMix", "AdaBelief", "AdaBound", "AdaDelta"),
    *("AdaGC", "AdaMax", "AdaMod", "AdaNorm", "AdaPNM", "AdaSmooth", "AdaTAM", "Adai"),
    *("Adalite", "AdamC", "AdamG", "AdamP", "AdamS", "AdamWSN", "Adan", "AggMo", "Aida"),
    *("Alice", "Amos", "Ano", "ApolloDQN", "AvaGrad", "BCOS", "CAME", "DiffGrad"),
    *("DualAdam", "EXAdam", "EmoFact", "EmoLynx", "EmoNavi", "FAdam", "FOCUS", "FTRL", "Fira"),
    *("FlashAdamW", "Fromage", "GaLore", "Grams", "GrokFastAdamW", "Kate"),
    *("LARS", "LaProp", "Lamb", "MADGRAD", "MARS", "MSVAG", "Nero", "NovoGrad"),
    *("PAdam", "PID", "PNM", "QHAdam", "QHM", "RACS", "RAdam", "ROSE", "Ranger", "Ranger21"),
    *("SGDP", "SGDSaI", "SGDW", "SM3", "SOAP", "SPAM", "SPlus", "SRMM", "SWATS", "SaRA"),
    *("Shampoo", "SignSGD", "SimplifiedAdEMAMix", "StableAdamW", "StableSPAM", "TAM", "Tiger"),
    *("VSGD", "Yogi"),
)
"""pytorch-optimizer's classes. Left out are those that want more than gradients (a closure, the
model, second derivatives, parameters split by hand), and those that do not go on exactly where
they were stopped."""

FIND_THEIR_RATE = ("prodigy", "dadapt")
"""How the names of optimizers begin that estimate their step size. The rate is a factor on it,
meant to be 1, and the first group's counts for all parameters."""

AVERAGE = "schedulefree"
"""Part of the names of optimizers that train at one point and are judged at an average."""


def path_of(name: str) -> str:
    """The dotted path of the class that a recipe calls `name`."""
    classes = {kind.lower(): f"pytorch_optimizer.{kind}" for kind in PYTORCH_OPTIMIZER}
    return name if "." in name else {**classes, **dict(NAMED)}[name]


def names() -> tuple[str, ...]:
    """Every name that a recipe may use."""
    return tuple(dict.fromkeys((*(n for n, _ in NAMED), *(k.lower() for k in PYTORCH_OPTIMIZER))))


def finds_its_rate(name: str) -> bool:
    """Whether the optimizer `name`, also by a dotted path, estimates its own step size."""
    return name.rpartition(".")[2].lower().startswith(FIND_THEIR_RATE)


def averages(name: str) -> bool:
    """Whether the optimizer `name` is a schedule-free one."""
    return AVERAGE in name.rpartition(".")[2].lower()


def _known(name: str) -> str:
    """As a recipe may spell it, into a name of `names` or a dotted path as it is."""
    if "." in name:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f'{name!r} is no dotted path such as "package.module.Class"')
        return name
    plain = name.lower().replace("_", "").replace("-", "")
    if plain in names():
        return plain
    near = difflib.get_close_matches(plain, sorted(names()), n=3, cutoff=0.5) or ["adamw8bit"]
    raise ValueError(
        f"{name!r} is no optimizer known here. Nearest: {', '.join(near)}. "
        'Any other is named by its dotted path, "package.module.Class"'
    )


OptimizerName = Annotated[str, AfterValidator(_known)]
