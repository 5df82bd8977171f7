"""What `urushi plan` says of LoRAs on the disk is what a build leaves there."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.artefacts.job import Job
from pipeline.progress import Silent
from pipeline.rounds.stage import parts
from pipeline.stages import stage
from urushi.plan import disk_bytes, print_plan
from urushi.plan_loras import planned_loras
from urushi.table import size

JobMaker = Callable[..., Job]
SHORT = ("count = 3", 'count = 2\ngate = "always"\nstrength = 0.5')


def _tensors(files: Iterable[Path]) -> int:
    """Bytes of the tensors in `files`, each counted once however many names it has."""
    found = {file.stat().st_ino: file.read_bytes() for file in files}
    return sum(len(file) - 8 - int.from_bytes(file[:8], "little") for file in found.values())


@pytest.mark.parametrize("text", ["", "text_encoder_rate = 0.5\n"])
def test_loras_on_the_way_and_of_text_encoders_are_counted(
    fresh_job: JobMaker, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = fresh_job(SHORT, ("[train]\n", f"[train]\nlora_every = 3\n{text}"))
    planned = planned_loras(job.recipe, [8, 8])
    # After steps 3 and 6 of either round.
    assert planned is not None and planned.on_the_way == 4
    print_plan(job.recipe_path, job.workspace.root)
    said = f"(2 x {size(planned.each)}, 4 on the way, and all in one)\n"
    assert f"LoRAs        {size(planned.bytes)} {said}" in capsys.readouterr().out

    stage("train").run(job, Silent())
    assert _tensors(job.folder.root.glob("rounds/01/**/*.safetensors")) == 3 * planned.each


@pytest.mark.drill
def test_those_of_a_whole_build_and_of_the_single_one_beside_it_are(fresh_job: JobMaker) -> None:
    job = fresh_job(SHORT, ("[train]\n", "[baseline]\nsingle = true\n[train]\nlora_every = 3\n"))
    planned = planned_loras(job.recipe, [8, 8])
    assert planned is not None
    for part in parts(job):
        part.run(job, Silent())
    folder, each = job.folder, planned.each
    trained = set(folder.root.glob("rounds/*/train/*.safetensors"))
    assert _tensors([*trained, *folder.root.glob("rounds/*/lora.safetensors")]) == 6 * each
    # Of what is side by side in one file, one number a layer scales all.
    assert 0.98 * 2 * each < _tensors([folder.final_lora]) <= 2 * each
    refitted = folder.baseline / "refitted.safetensors"
    checkpoints = set(folder.baseline.glob("*.safetensors")) - {refitted}
    # On all 16 steps' way after 3, 6, 9, 12 and 15.
    assert _tensors(checkpoints) == (2 + 1 + 5) * each and planned.on_the_way == 4 + 5
    # A checkpoint that is given no weight is left out.
    assert each <= _tensors([refitted]) <= 2 * each
    assert planned.baseline == 2 + 1 + 2


def test_the_disk_is_asked_for_as_much(fresh_job: JobMaker) -> None:
    job = fresh_job(("[train]\n", "[train]\nlora_every = 3\ntext_encoder_rate = 0.5\n"))
    lora = job.recipe.lora.model_copy(update={"rank": 8})
    wider = replace(job, build=job.recipe.model_copy(update={"lora": lora}))
    loras = [planned_loras(each.recipe, [8, 8, 8]) for each in (job, wider)]
    asked = [disk_bytes(each) for each in (job, wider)]
    assert loras[0] is not None and loras[1] is not None
    assert asked[0] is not None and asked[1] is not None
    assert asked[1] - asked[0] == loras[1].bytes - loras[0].bytes > 0


def test_how_many_there_will_be_is_unknown_where_steps_are(fresh_job: JobMaker) -> None:
    job = fresh_job(("[train]\n", "[train]\nlora_every = 3\n"))
    planned = planned_loras(job.recipe, [8, None, 8])
    assert planned is not None and planned.on_the_way is None
    assert planned.bytes == 6 * planned.each
