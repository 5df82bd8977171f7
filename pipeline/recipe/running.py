"""Keys of [train] that say how a round runs, not what it makes: no fingerprint holds them."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.recipe.section import Positive, RecipePath, Section


class Running(Section):
    """How a round runs. Any of these may change while a round is half trained."""

    gradient_checkpointing: bool = False
    """Less memory for about a third more time."""
    channels_last: bool | Literal["auto"] = "auto"
    """Pictures' channels side by side in memory, which GPUs' convolutions in fp16 are fastest with;
    auto: on GPUs."""
    compile: bool = False
    """torch.compile of the UNet's transformer blocks: a minute or more at a process's first steps,
    for fewer seconds in each later one. Needs a GPU and a C++ compiler."""
    save_every: int = Field(100, ge=1)
    """Steps between resume points."""
    save_minutes: Positive = 10.0
    """A resume point also after so many minutes, whichever comes first."""
    save_last: Annotated[int, Field(ge=1)] = 2
    """Resume points kept while a round trains; the others are removed, oldest first."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between two looks at the loss: looking makes the processor wait for the GPU."""
    sample_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between sample pictures, [preview]'s prompts drawn by the network as it is then, into
    the round's folder and its curves; default: none before the round is merged. Training waits."""
    lora_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between LoRA files that stay beside the round's own, as train/step-000100.safetensors:
    to try in other programs, or to make one better LoRA of with `urushi refit`; default: none."""
    divergence: Annotated[float, Field(gt=1)] = 5.0
    """A round stops when its mean loss over 50 steps is so many times that of its first 50."""
    process: Literal["auto", "own", "shared"] = "auto"
    """own: each round trains in a process of its own, which gives all memory back and whose crash
    ends no build. shared: inside the build's, which saves starting one (some seconds). auto: own
    on GPUs, shared on a CPU, where there is neither a driver to crash nor memory to give back."""
    devices: Annotated[int, Field(ge=1)] = 1
    """GPUs that share each step's batches; accumulation must be a multiple. The LoRA is the same
    up to rounding, however many there are."""
    accelerate_config: RecipePath | None = None
    """A file of `accelerate config`, for launching in another way than on `devices` GPUs of this
    machine; its number of processes counts then."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Where curves of loss, rate, speed and memory go, and samples: TensorBoard's into the round's
    folder; wandb's, of the extra `wandb`, to the service, a run for each round in the project
    "urushi" (or WANDB_PROJECT), or with WANDB_MODE=offline into that folder too."""
