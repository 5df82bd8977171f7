"""`urushi refit RECIPE LORA… --out FILE`: checkpoints of one LoRA's training into a better LoRA.

What each checkpoint added to the one before is given a strength of its own, fitted on the held-out
pictures of the recipe's dataset. For people who train one LoRA, with whatever trains it.
"""

from pathlib import Path

import merge
from pipeline.artefacts.gpus import turn
from pipeline.artefacts.job import load_job
from pipeline.errors import RequestError
from urushi.progress import Terminal


def refit(recipe: Path, loras: list[Path], out: Path, workspace: Path) -> None:
    """Writes `out` and says what each way of taking the checkpoints costs.

    Raises:
        RequestError: fewer than two LoRAs, or one that is not of the recipe's base; the dataset is
            not cached yet.
        MergeError: `out` cannot be written.
    """
    if len(loras) < 2:
        raise RequestError("refit takes two checkpoints of one training or more, in their order.")
    missing = [str(path) for path in loras if not path.is_file()]
    if missing:
        raise RequestError(f"There is no {', no '.join(missing)}.")
    from pipeline.rounds.pictures import pictures
    from pipeline.rounds.single import differences, weigh

    job, progress = load_job(recipe, workspace), Terminal()
    seen = pictures(job, job.recipe.law()[0])
    with turn(progress.say):
        files = list(enumerate(loras, 1))
        single, _ = weigh(job, [seen], files, progress)
    for number, (path, point) in enumerate(zip(loras, single.snapshots, strict=True)):
        mark = "  best" if point.step == single.stopped_at else ""
        strength = single.strengths[number]
        print(f"{path.name}: loss {point.loss:.5f}{mark}; what it added, at {strength:g}")
    print(
        f"on the other half: base {single.origin:.5f}, last {single.last:.5f}, best "
        f"{single.early_stopped:.5f}, refitted {single.refitted:.5f}"
    )
    judges = len(seen.split.judges)
    print(
        f"({judges} pictures of {seen.split.dataset} judged it. If the LoRA was trained on them, "
        "these losses say little.)"
    )
    factors = zip(loras, differences(single.strengths), strict=True)
    merge.concat([merge.Addend(path, factor) for path, factor in factors], out)
    print(f"{out}: as one LoRA; `urushi lora resize` makes it smaller")
