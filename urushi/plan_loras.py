"""A recipe into the LoRA files that its build leaves on the disk: sizes and counts, before it runs.

Counted are tensors; a file's header is some kilobytes more. A round that is tried a second time, at
a lower rate, leaves as much again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.recipe import BuildRecipe
from urushi.lora_size import SAVED, learning_encoders, lora_bytes, text_lora_bytes
from urushi.table import size


@dataclass(frozen=True)
class Loras:
    """How many LoRAs, each of `each` bytes, lie where."""

    each: int
    rounds: int
    """One for each; the final LoRA is of all their ranks together, as large as they all."""
    on_the_way: int | None
    """What [train].lora_every keeps beside them; None where a round's steps are not known."""
    baseline: int
    """Of [baseline].single: its checkpoints, its end, and what is refitted from the checkpoints,
    which is of all their ranks together."""

    @property
    def bytes(self) -> int:
        """Of all; what is not known is left out."""
        return self.each * (2 * self.rounds + (self.on_the_way or 0) + self.baseline)


def planned_loras(recipe: BuildRecipe, steps: Sequence[int | None]) -> Loras | None:
    """What `recipe` will leave; None while the base is not there or not understood.

    Args:
        steps: of each round, in order; None where that is not known.
    """
    each = lora_bytes(recipe.base, recipe.lora)
    learns, laws = learning_encoders(recipe), recipe.law()
    if each is None:
        return None
    if any(learns):
        each += text_lora_bytes(recipe.base, recipe.lora, learns)
    trained = [(law.train.lora_every, count) for law, count in zip(laws, steps, strict=True)]
    baseline = 0
    if recipe.baseline.single:
        checkpoints = max(2, len(laws))
        baseline = checkpoints + 1 + checkpoints
        # It trains as round 1 does, for as many steps as all of them.
        known = [count for count in steps if count is not None]
        trained.append((laws[0].train.lora_every, sum(known) if len(known) == len(laws) else None))
    kept = [_kept(every, count) for every, count in trained]
    return Loras(
        each=round(each * SAVED.get(recipe.rounds.start, 1)),
        rounds=len(laws),
        on_the_way=None if None in kept else sum(count for count in kept if count is not None),
        baseline=baseline,
    )


def _kept(every: int | None, steps: int | None) -> int | None:
    """LoRAs that a training of `steps` keeps on its way; what the last one gives is its product."""
    if every is None:
        return 0
    return None if steps is None else max(0, steps - 1) // every


def lora_lines(recipe: BuildRecipe, loras: Loras | None) -> Iterator[str]:
    """For a person."""
    rounds = len(recipe.law())
    if loras is None:
        yield f"LoRAs        {rounds} of rank {recipe.lora.rank}; sizes unknown without the base"
        return
    parts = [f"{rounds} x {size(loras.each)}", "all in one"]
    if loras.on_the_way:
        parts.insert(1, f"{loras.on_the_way:,} on the way")
    if loras.baseline:
        parts.append("the single one beside them")
    more = "" if loras.on_the_way is not None else "; and those of [train].lora_every (unknown)"
    yield f"LoRAs        {size(loras.bytes)} ({', '.join(parts[:-1])}, and {parts[-1]}){more}"
