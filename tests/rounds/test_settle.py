"""What a build does beside its rounds: anchors, refits, trials, stops, what stays on disk."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.artefacts.chain import IMAGES_FILE
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.ledger import Ledger, read_ledger
from pipeline.artefacts.receipts import read_receipt, write_receipt
from pipeline.artefacts.records import ImageRecord, read_records, write_records
from pipeline.errors import DiskFullError, RequestError
from pipeline.progress import Silent
from pipeline.rounds import keep, stage
from pipeline.rounds.anchor import anchor_of
from pipeline.rounds.chain import sha256
from pipeline.rounds.gate import ANCHOR_STEP
from pipeline.rounds.history import history
from pipeline.rounds.kin import with_kin
from pipeline.rounds.pictures import pictures
from pipeline.rounds.rates import laws
from pipeline.rounds.settle import final_links, refit_strengths
from pipeline.rounds.training import training
from pipeline.stages import DATA_STAGES

JobMaker = Callable[..., Job]


def build(job: Job) -> Ledger:
    for part in stage.parts(job):
        part.run(job, Silent())
    return read_ledger(job.folder.ledger)


@pytest.mark.drill
def test_trials_anchor_refit_and_overrides_in_one_build(
    fresh_job: JobMaker, workshop: Path
) -> None:
    """The rate is found, the anchor shrinks strengths, all are fitted together at the end."""
    (workshop / "anchor.toml").write_text('name = "anchor"\n[folder]\npath = "pictures"\n')
    job = fresh_job(
        (
            "learning_rate = 2e-3\ndecay = 0.5",
            'learning_rate = "auto"\ntrial_rates = [1e-3, 1e-2]\ntrial_steps = 3\ndecay = 0.5\n'
            'strength = "damped"\ngate = "always"\nanchor = "anchor.toml"\nanchor_pictures = 5\n'
            "anchor_budget = 3.0\n"
            'keep = "none"',
        ),
        ("count = 3", "count = 1"),
        ("[preview]", "[[round]]\nsteps = 4\ntrain = { batch_size = 2, warmup = 0.5 }\n[preview]"),
    )
    for data_stage in DATA_STAGES:
        data_stage.run(job, Silent())
    ledger = build(job)
    assert [trial.learning_rate for trial in ledger.trials] == [1e-3, 1e-2]
    best = min(ledger.trials, key=lambda trial: trial.loss).learning_rate
    assert [row.learning_rate for row in ledger.rounds] == pytest.approx([best, best / 2])
    assert [row.steps for row in ledger.rounds] == [8, 4]
    assert not (job.folder.root / "trials").exists()
    anchor = anchor_of(job)
    assert anchor is not None and len(anchor.split.held_out) == 5
    for law in laws(job):
        # Of the same folder, so the anchor's are among them.
        assert set(pictures(job, law).train) & anchor.split.md5s
        assert not set(training(job, law, (), None, 1).pictures) & anchor.split.md5s
    for row in ledger.rounds:
        assert row.wanted == 0.5 and 0 < row.strength <= 0.5
        assert row.anchor_before is not None and row.anchor_after is not None
        assert row.anchor_after <= row.anchor_before * (1 + ANCHOR_STEP)
        assert [(b.first, b.last) for b in row.buckets] == [(0, 499), (500, 999)]
        mean = sum(b.after for b in row.buckets) / 2
        assert mean == pytest.approx(row.heldout_after)
        assert 0 < row.drift < 1 and row.peak_memory["cpu"] > 0 and row.versions["torch"]
    refit = ledger.refit
    assert refit is not None and refit.rounds == (1, 2)
    assert refit.chosen_after <= refit.chosen_before
    assert [row.final_strength for row in ledger.rounds] == list(refit.strengths)
    assert refit.kept == (refit.after < refit.before)
    assert not any(job.folder.round(k).checkpoint.exists() for k in (1, 2))
    assert sha256(job.folder.final) == ledger.final_sha256
    assert all(part.run(job, Silent()).already for part in stage.parts(job))
    links = final_links(job, history(job, 2))
    assert {link.strength for link in links} <= set(refit.strengths)


def test_an_anchor_of_the_builds_own_dataset_keeps_its_kin_from_training(
    fresh_job: JobMaker,
) -> None:
    """Anchors are drawn picture by picture, so nothing kept a variant of one out of training."""
    job = fresh_job(("count = 3", 'count = 3\nanchor = "drawings.toml"\nanchor_pictures = 4'))
    law, anchor = job.recipe.law()[0], anchor_of(job)
    assert anchor is not None
    shown, twin = min(anchor.split.md5s), training(job, law, (), None, 1).pictures[0]
    images = job.dataset_folder(job.dataset_of(law.dataset)).images
    receipt = read_receipt(images)
    assert receipt is not None
    records = [
        record.model_copy(update={"kin": ("post:1",)}) if record.md5 in (shown, twin) else record
        for record in read_records(images / IMAGES_FILE, ImageRecord)
    ]
    write_records(images / IMAGES_FILE, records)
    write_receipt(
        images,
        receipt.stage,
        receipt.fingerprint,
        inputs=receipt.inputs,
        outputs=[images / name for name in receipt.outputs],
        summary=receipt.summary,
    )
    md5s = anchor.split.md5s
    assert with_kin(job, [law.dataset], md5s, whole=True) == md5s
    assert with_kin(job, [law.dataset], md5s, whole=False) >= {*md5s, twin}
    for data_stage in DATA_STAGES:
        data_stage.run(job, Silent())
    assert twin not in training(job, law, (), None, 1).pictures


def test_pictures_of_a_refit_by_hand_are_drawn_in_turn(
    copied: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []

    @contextmanager
    def turn(_: object) -> Iterator[None]:
        taken.append(True)
        yield

    monkeypatch.setattr(stage, "turn", turn)
    stage.parts(copied)[-1].run(copied, Silent())
    assert taken == [], "nothing is drawn"
    found = history(copied, 3)
    refit_strengths(copied, found, Silent(), by_hand=True)
    stage.parts(copied)[-1].run(copied, Silent())
    assert taken == [True]


def test_a_replaced_origin_is_named(finished: Job, workshop: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.workspace.root, tmp_path / "workspace")
    changed = bytearray((workshop / "base.safetensors").read_bytes())
    changed[-1] ^= 1
    (workshop / "other.safetensors").write_bytes(changed)
    text = (workshop / "finished.toml").read_text().replace("base.safetensors", "other.safetensors")
    (workshop / "replaced.toml").write_text(text)
    job = load_job(workshop / "replaced.toml", tmp_path / "workspace")
    with pytest.raises(RequestError, match="is not the file that coats started from"):
        stage.parts(job)[0].run(job, Silent())


def test_a_budget_of_time_ends_the_build_and_says_so(fresh_job: JobMaker) -> None:
    job = fresh_job(
        ("learning_rate = 2e-3", 'learning_rate = 2e-3\ngate = "always"\nhours = 1e-6'),
        ("[8]", "[1]"),
    )
    ledger = build(job)
    assert len(ledger.rounds) == 1 and ledger.status == "finished"
    assert ledger.stopped is not None and "hours; 1e-06 are allowed" in ledger.stopped
    assert job.folder.final.exists()


@pytest.mark.parametrize(
    ("policy", "remedy"),
    [("all", r"Free some, or keep fewer of them \(\[rounds\]\.keep"), ("last", r"Free some, and")],
)
def test_no_room_is_told_before_a_round_is_trained(
    fresh_job: JobMaker, monkeypatch: pytest.MonkeyPatch, policy: str, remedy: str
) -> None:
    job = fresh_job(("[rounds]\n", f'[rounds]\nkeep = "{policy}"\n'))
    monkeypatch.setattr(keep, "MARGIN", 1e12)
    with pytest.raises(DiskFullError, match=rf"a round's checkpoint takes [\d,]+\. {remedy}"):
        stage.parts(job)[0].run(job, Silent())
    assert not job.folder.round(1).train.exists()


@pytest.mark.parametrize(
    ("policy", "running", "finished_with"),
    [
        ("all", {1, 2, 4}, {1, 2, 4}),
        ("last", {4}, {4}),
        (2, {2, 4}, {2, 4}),
        ("best", {2, 4}, {2}),
        ("none", {4}, set()),
    ],
)
def test_what_stays(policy: keep.Keep, running: set[int], finished_with: set[int]) -> None:
    merged = [(1, 0.9), (2, 0.5), (4, 0.6)]
    assert keep.kept(policy, merged, finished=False) == running
    assert keep.kept(policy, merged, finished=True) == finished_with
    assert keep.kept(policy, [], finished=True) == frozenset()
