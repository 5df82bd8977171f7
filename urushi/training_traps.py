"""What is known not to work well in how a build trains: optimizers, schedules, sizes and noise."""

from collections.abc import Iterator

from pipeline.models.inspect import BaseFacts
from pipeline.recipe import BuildRecipe, DatasetRecipe
from pipeline.recipe.optimizers import averages, finds_its_rate
from pipeline.recipe.train import Train
from pipeline.train.machine import without_gpu
from urushi.traps import Known, Trap

SDXL_LEAST = 768
"""Area side, pixels. SDXL was taught at 1024 (Podell et al. 2023, arXiv 2307.01952, section 2.2),
and below about three quarters of that falls apart."""


def training_traps(recipe: BuildRecipe) -> Iterator[Trap]:
    """Traps in a recipe's optimizer and schedule."""
    train, rounds = recipe.train, recipe.law()
    if finds_its_rate(train.optimizer):
        others = [law for law in rounds if law.learning_rate != 1]
        if others:
            rate = others[0].learning_rate
            said = f"trains at {rate:g}" if rate is not None else "looks for its rate by trials"
            yield Trap(
                "found-rate",
                f"[train].optimizer {train.optimizer} estimates its step size itself, and the "
                f"learning rate is only a factor on it: round {others[0].number} {said}. "
                "Set [rounds].learning_rate = 1.0 and decay = 1.0.",
            )
        yield from _block_rates(recipe)
    trained = [law.train for law in rounds]
    apart = [one for one in trained if one.rates_apart and finds_its_rate(one.optimizer)]
    if apart:
        yield Trap(
            "found-rate-text",
            f"[train].text_encoder_rate is {_said(apart[0])} of the UNet's, and [train].optimizer "
            f"{apart[0].optimizer} finds one step size for everything that it trains: the round "
            "will be refused. Use 1 or 0, or another optimizer.",
        )
    twice = [one for one in trained if one.ema_decay and averages(one.optimizer)]
    if twice:
        yield Trap(
            "averaged-twice",
            f"[train].ema_decay {twice[0].ema_decay:g} averages the points at which [train]."
            f"optimizer {twice[0].optimizer} takes its gradients, and that average is what is "
            "saved, not the optimizer's own, which it is made for. Set ema_decay = 0.",
        )
    if averages(train.optimizer) and not train.scheduler.startswith("constant"):
        yield Trap(
            "averaged-schedule",
            f"[train].optimizer {train.optimizer} averages what it passes in place of a falling "
            f'rate, and [train].scheduler is "{train.scheduler}": both together learn less. '
            'Use "constant_with_warmup".',
        )


def machine_traps(recipe: BuildRecipe) -> Iterator[Trap]:
    """Traps in what a recipe asks of this machine."""
    for reason in without_gpu(law.train for law in recipe.law()):
        yield Trap("no-gpu", f"{reason} `urushi run` refuses it here.")


def mask_traps(recipe: BuildRecipe) -> Iterator[Trap]:
    """Traps in what a build does with the masks that it caches."""
    masks, masked = recipe.cache.masks, [law.train for law in recipe.law() if law.train.masked_loss]
    if masks is None or any(train.unmasked_weight < 1 for train in masked):
        return
    why = (
        "with [train].unmasked_weight = 1 they change nothing: lower it"
        if masked
        else "no round's loss is masked: set [train].masked_loss = true"
    )
    yield Trap(
        "masks-unused",
        f'[cache].masks = "{masks}" has masks cached, and {why}, or leave masks out.',
    )


def masks_of_traps(recipe: BuildRecipe, dataset: DatasetRecipe, files: int) -> Iterator[Trap]:
    """Traps in what a build makes of one dataset's masks, of which there are so many `files`."""
    if dataset.masks is not None and recipe.cache.masks != "files":
        yield Trap(
            "masks-unread",
            f"{dataset.name} names masks in [masks], and the build does not read them. Set "
            '[cache].masks = "files", or take [masks] out.',
        )
    if recipe.cache.masks == "files" and not files:
        where = (
            f"in {dataset.masks.folder} ([masks].folder)"
            if dataset.masks is not None
            else "as NAME-masklabel.png beside its pictures, and no [masks].folder"
            if dataset.folder is not None
            else "as it has no [masks].folder"
        )
        yield Trap(
            "no-masks",
            f'[cache].masks = "files", and {dataset.name} has no masks {where}: all of its '
            "pictures count whole.",
        )


def _block_rates(recipe: BuildRecipe) -> Iterator[Trap]:
    blocks = recipe.lora.rates("sd15")
    odd = {block: rate for block, rate in blocks.named.items() if rate not in (0, 1)}
    if blocks.rest not in (0, 1):
        odd["rest"] = blocks.rest
    if odd:
        said = ", ".join(f"{block} = {rate:g}" for block, rate in odd.items())
        yield Trap(
            "found-rate-blocks",
            f"[train].optimizer {recipe.train.optimizer} estimates one step size for all that is "
            f"trained, and [lora].blocks gives blocks shares of it ({said}): training refuses "
            "rates apart, and one share for all only scales the estimate. Use 0 and 1 alone, or "
            "another optimizer.",
        )


def _said(train: Train) -> str:
    one, other = train.encoder_rates
    return f"{one:g}" if one == other else f"{one:g} and {other:g}"


def regularisation_traps(dataset: DatasetRecipe, known: Known) -> Iterator[Trap]:
    """Traps in a set of pictures that should keep what the model can."""
    if known.transparent:
        yield Trap(
            "transparent-regularisation",
            f"{known.transparent} of {known.looked_at} regularisation pictures of {dataset.name} "
            "that were looked at are wholly transparent: they teach flat grey. Use real pictures "
            "of the same kind of thing, or no regularisation.",
        )
    if known.generated:
        yield Trap(
            "generated-regularisation",
            f"{known.generated} of {known.looked_at} regularisation pictures of {dataset.name} "
            "that were looked at were drawn by a model: its faults are learned as what is right. "
            "Use real pictures of the same kind of thing.",
        )


def base_traps(recipe: BuildRecipe, base: BaseFacts, stated: str | None) -> Iterator[Trap]:
    """Traps in what a recipe does with its base.

    Args:
        stated: what the configuration beside the checkpoint says that it predicts.
    """
    smallest = min(recipe.resize.resolutions)
    if base.family == "sdxl" and smallest < SDXL_LEAST:
        yield Trap(
            "sdxl-small",
            f"The base is an SDXL, which was taught at 1024 x 1024, and [resize] has {smallest}: "
            "it draws such sizes badly and learns to. Use 1024, or 768 where memory is short.",
        )
    if stated is not None and stated != base.prediction_type:
        yield Trap(
            "prediction-type",
            f"{base.path} marks itself {base.prediction_type}, and the configuration beside it "
            f"says {stated}. The file is believed. If it is wrong, only noise will be learned: "
            "give [base].config the file's own configuration.",
        )
    train = recipe.train
    if base.zero_terminal_snr and (train.noise_offset or train.multires_noise):
        key = "noise_offset" if train.noise_offset else "multires_noise"
        yield Trap(
            "noise-at-zero-snr",
            f"[train].{key} teaches dark and bright pictures to bases that never saw pure noise; "
            "this one did (zero terminal SNR), and its last timestep asks for just what it is "
            f"given. Leave [train].{key} at 0.",
        )
