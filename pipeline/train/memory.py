"""Too little memory, told with the switches that help."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import UrushiError, memory_refused
from pipeline.recipe.train import Train


@contextmanager
def enough_memory(train: Train, where: str) -> Iterator[None]:
    """Turns a refusal of memory into an error of ours.

    Raises:
        UrushiError: names the switches that this recipe leaves, the cheapest first.
    """
    try:
        yield
    except Exception as error:
        refusal = memory_refused(error)
        if refusal is None:
            raise
        raise _told(train, where, refusal) from error


def _told(train: Train, where: str, what: str) -> UrushiError:
    return UrushiError(
        f"There is not enough memory {where} ({what}). What was saved "
        f"stands. Try, in [train]: {'; '.join(_switches(train))}."
    )


def _switches(train: Train) -> Iterator[str]:
    if not train.gradient_checkpointing:
        yield "gradient_checkpointing = true (a third more time; the round goes on where it is)"
    if train.batch_size > 1:
        half = train.batch_size // 2
        more = train.accumulation * -(-train.batch_size // half)
        yield f"batch_size = {half} with accumulation = {more} (the same step)"
    if not train.optimizer.endswith("8bit"):
        yield 'optimizer = "adamw8bit"'
    if train.precision == "float32" and torch.cuda.is_available():
        yield 'precision = "fp16"'
    if train.storage in ("auto", "float32", "fp16", "bf16"):
        yield 'storage = "fp8" (the base in a byte a weight), or "nf4" (in half a byte)'
    yield "or a smaller [lora].rank, or a smaller [resize].resolution"
