import re
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flows.work import at_work
from pipeline.artefacts.job import load_job
from pipeline.artefacts.records import ImageRecord
from pipeline.errors import RequestError
from pipeline.models.inspect import BaseFacts
from pipeline.progress import Silent
from pipeline.recipe import load_build, load_dataset
from urushi.check import print_check
from urushi.plan import Pictures, round_traps
from urushi.regularisation import looked_at
from urushi.training_traps import (
    base_traps,
    machine_traps,
    regularisation_traps,
    training_traps,
)
from urushi.traps import CODES, Known, build_traps, dataset_traps, picture_traps

WriteRecipe = Callable[..., Path]
WARNINGS = Path(__file__).parents[2] / "WARNINGS.md"
Usage = namedtuple("Usage", "total used free")
BOORU = 'name = "set"\n[download]\nsite = "danbooru"\ntags = "{tags}"\ncontact = "{contact}"\n'


TOLD: set[str] = set()
"""Codes that a test here has seen."""


def of_build(path: Path) -> list[str]:
    traps = [t for t in build_traps(load_build(path)) if t.code != "configurations"]
    TOLD.update(trap.code for trap in traps)
    return [trap.text for trap in traps]


def of_dataset(path: Path) -> list[str]:
    traps = list(dataset_traps(load_dataset(path)))
    TOLD.update(trap.code for trap in traps)
    return [trap.text for trap in traps]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            "[resize]\nresolution = 500\n",
            "[resize].resolution 500 is not a multiple of step 64, so no bucket has this side. "
            "Use 448 or 512.",
        ),
        ("[lora]\nconv_rank = 8\n", "[lora].conv_rank 8 trains convolutions too"),
        ("[lora]\nrank = 8\nalpha = 9\n", "[lora].alpha 9 is above rank 8"),
        (
            "[rounds]\ncount = 6\ndecay = 0.5\n",
            "[rounds].decay brings round 6 to 3.1e-06, 3% of round 1's rate",
        ),
        ("[rounds]\nsteps = [9]\nepochs = [2]\n", "[rounds] has epochs and steps; steps count"),
        (
            "[rounds]\ndecay = 1.0\n[[round]]\nsteps = 9\nepochs = 2\n",
            "[[round]] number 1 has epochs and steps",
        ),
        ('[rounds]\nstart = "pissa"\n', '[rounds].start "pissa" begins all 4 rounds'),
        ('[rounds]\ngate = "always"\n', '[rounds].gate "always" merges every round'),
        ("[preview]\nwidth = 520\n", "[preview].width 520 is not a multiple of 64"),
    ],
)
def test_what_a_build_is_warned_of(write_recipe: WriteRecipe, lines: str, said: str) -> None:
    assert of_build(write_recipe()) == []
    warnings = of_build(write_recipe(lines))
    assert len(warnings) == 1 and warnings[0].startswith(said)


def test_a_single_file_without_configurations_needs_the_network(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    (tmp_path / "base.safetensors").write_bytes(b"")
    traps = list(build_traps(load_build(write_recipe())))
    assert [trap.code for trap in traps] == ["configurations"]
    TOLD.add("configurations")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('ratings = ["general", "explicit"]\n', "[download].ratings of set takes explicit"),
        (
            "requests_per_second = 20\n",
            "[download].requests_per_second of set is 20; donmai.us allows 10",
        ),
        ("[caption]\ndrop_categories = []\n", "[caption].drop_categories of set does not list"),
        ("[caption]\nquality = []\n", "[caption].quality of set is empty"),
    ],
)
def test_what_a_dataset_is_warned_of(tmp_path: Path, lines: str, said: str) -> None:
    path = tmp_path / "set.toml"
    path.write_text(BOORU.format(tags="cat rating:g score:>=6", contact="me") + lines)
    warnings = of_dataset(path)
    assert len(warnings) == 1 and warnings[0].startswith(said)


def test_a_public_site_wants_a_name_and_few_tags_ones_own_does_not(tmp_path: Path) -> None:
    path = tmp_path / "set.toml"
    text = BOORU.format(tags="cat -dog bird rating:g", contact="")
    path.write_text(text)
    contact, tags = of_dataset(path)
    assert contact.startswith("[download].contact of set is empty")
    assert "has 3 tags (cat, -dog, bird)" in tags
    path.write_text(text + 'host = "http://127.0.0.1:1"\n')
    assert of_dataset(path) == []


def test_what_is_wrong_is_an_error_and_nothing_is_said_before(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe()
    with pytest.raises(RequestError, match="no checkpoint"):
        print_check(recipe, tmp_path)
    (tmp_path / "base.safetensors").write_text("not a checkpoint at all\n" * 9)
    with pytest.raises(RequestError, match="text file"):
        print_check(recipe, tmp_path)
    (tmp_path / "pictures").rmdir()
    with pytest.raises(RequestError, match=r"no folder .*\[folder\]\.path of pictures"):
        print_check(recipe, tmp_path)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "datasets").exists()


def test_a_lora_to_go_on_with_is_missed_before_anything_is_fetched(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe = write_recipe('[lora]\ninit = "mine.safetensors"\n')
    with pytest.raises(RequestError, match=r"no LoRA .*mine.safetensors \(\[lora\].init\)"):
        print_check(recipe, tmp_path)


@pytest.mark.parametrize("of_round", [False, True])
def test_a_tracker_is_missed_before_anything_is_fetched(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_round: bool
) -> None:
    monkeypatch.setattr("pipeline.train.trackers.find_spec", lambda _: None)
    asked = '[[round]]\ntrain = {trackers = ["wandb"]}\n' if of_round else ""
    none = "[]" if of_round else '["wandb"]'
    recipe = write_recipe(f"[train]\ntrackers = {none}\n{asked}")
    job = load_job(recipe, tmp_path / "workspace")
    with pytest.raises(RequestError, match=r"urushi\[wandb\]"):
        print_check(recipe, tmp_path / "workspace")
    with pytest.raises(RequestError, match=r"urushi\[wandb\]"), at_work(job, Silent()):
        pass


COMPILING = "[train]\ncompile = true\n"
COMPILING_LATE = "[[round]]\ntrain = {compile = true}\n"
HALF = '[train]\nprecision = "fp16"\n'


@pytest.mark.parametrize("lines", [COMPILING, COMPILING_LATE, HALF])
def test_what_needs_a_gpu_is_told_where_there_is_none_before_anything_is_fetched(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str
) -> None:
    recipe = write_recipe(lines)
    build, job = load_build(recipe), load_job(recipe, tmp_path / "workspace")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (trap,) = machine_traps(build)
    TOLD.add(trap.code)
    assert trap.code == "no-gpu" and "needs a GPU, and there is none here" in trap.text
    with pytest.raises(RequestError, match="needs a GPU, and"), at_work(job, Silent()):
        pass
    monkeypatch.setattr("pipeline.train.machine.gpu_here", lambda: True)
    assert list(machine_traps(build)) == []


def test_a_gpu_is_only_looked_for_where_one_is_needed(
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking brings torch, which takes a second."""
    looked: list[bool] = []
    monkeypatch.setattr("pipeline.train.machine.gpu_here", lambda: bool(looked.append(True)))
    assert list(machine_traps(load_build(write_recipe('[train]\nprecision = "bf16"\n')))) == []
    assert not looked
    assert list(machine_traps(load_build(write_recipe(COMPILING)))) and looked


def test_a_dataset_recipe_is_checked_alone(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_check(write_recipe().with_name("pictures.toml"), tmp_path)
    assert "dataset pictures\n  nothing to warn of\n" in capsys.readouterr().out


TINY = Known(pictures=400, small=0)


@pytest.mark.parametrize(
    ("code", "caption", "build", "known", "calm"),
    [
        ("few-pictures", 'preset = "character"', "[rounds]\nsteps = [1000]", Known(49), Known(50)),
        ("alpha-few-pictures", "", "[lora]\nrank = 8\nalpha = 5", Known(199), Known(200)),
        ("held-out-few", "", "[rounds]\nheld_out = 0.1", Known(150), Known(160)),
        ("small-pictures", "", "", Known(400, 41), Known(400, 40)),
        ("alike", "", "", Known(400, 0, alike=21), Known(400, 0, alike=20)),
        (
            "shared-words",
            "",
            "",
            Known(400, 0, shared_words=(("blue hair", "long hair"),)),
            TINY,
        ),
    ],
)
def test_what_pictures_are_warned_of(
    write_recipe: WriteRecipe, code: str, caption: str, build: str, known: Known, calm: Known
) -> None:
    recipe = write_recipe(f"{build}\n")
    pictures = recipe.with_name("pictures.toml")
    pictures.write_text(f"{pictures.read_text()}[caption]\n{caption}\n")
    sections = load_build(recipe), load_dataset(pictures)
    found = [trap.code for trap in picture_traps(*sections, known)]
    TOLD.update(found)
    assert code in found
    assert code not in [trap.code for trap in picture_traps(*sections, calm)]


@pytest.mark.parametrize(
    ("preset", "steps", "told"),
    [
        ("character", 499, True),
        ("character", 500, False),
        ("character", 3000, False),
        ("character", 3001, True),
        ("situation", 1124, True),
        ("situation", 1125, False),
        ("object", 90_000, False),
        ("style", 1, False),
    ],
)
def test_steps_far_from_what_was_seen_to_be_needed(
    write_recipe: WriteRecipe, preset: str, steps: int, told: bool
) -> None:
    """One round of `steps` at batch 4: within half and double of what was seen."""
    recipe = write_recipe(f"[train]\nbatch_size = 4\n[rounds]\ncount = 1\nsteps = [{steps}]\n")
    pictures = recipe.with_name("pictures.toml")
    pictures.write_text(f'{pictures.read_text()}[caption]\npreset = "{preset}"\n')
    traps = picture_traps(load_build(recipe), load_dataset(pictures), TINY)
    codes = [trap.code for trap in traps]
    TOLD.update(codes)
    assert ("step-count" in codes) == told


@pytest.mark.parametrize(
    ("name", "quality", "told"),
    [
        ("animagine-xl-3.1", '"urushi"', True),
        ("Animagine-XL", '[[150, "masterpiece"]]', False),
        ("animagine-xl-3.1", '"animagine-3.1"', False),
        ("animagine-xl-3.1", "[]", False),
        ("another", '"urushi"', False),
    ],
)
def test_an_animagine_base_with_low_cuts(
    write_recipe: WriteRecipe, name: str, quality: str, told: bool
) -> None:
    recipe = write_recipe()
    recipe.write_text(recipe.read_text().replace("base.safetensors", f"{name}.safetensors"))
    pictures = recipe.with_name("pictures.toml")
    pictures.write_text(f"{pictures.read_text()}[caption]\nquality = {quality}\n")
    traps = picture_traps(load_build(recipe), load_dataset(pictures), Known())
    codes = [trap.code for trap in traps]
    TOLD.update(codes)
    assert codes == (["score-scheme"] if told else [])


@pytest.mark.parametrize(
    ("lines", "count", "said"),
    [
        ("count = 2\nsteps = [199, 200]", 400, "Round 1 has 199 steps (2.1 passes over"),
        ("count = 3\nsteps = [50, 300, 60]", 400, "Rounds 1, 3 have 50 steps (0.53 passes"),
        ("count = 2\nepochs = [2]", 400, "Rounds 1, 2 have 190 steps (2 passes"),
        ("count = 2\nepochs = [3]", 400, None),
        ("count = 1\nsteps = [50]", 400, None),
        ("count = 4\nsteps = [150]", 10, None),
        ("count = 4\nsteps = [150]", None, None),
    ],
)
def test_rounds_too_short_to_flatten(
    write_recipe: WriteRecipe, lines: str, count: int | None, said: str | None
) -> None:
    """Batches of 4; of 400 pictures 380 are trained on, of 10 there are 6."""
    recipe = load_build(write_recipe(f"[train]\nbatch_size = 4\n[rounds]\n{lines}\n"))
    found = list(round_traps(recipe, {recipe.dataset.recipe: Pictures(count, True, None)}))
    TOLD.update(trap.code for trap in found)
    assert len(found) == (said is not None)
    assert said is None or found[0].text.startswith(said)


PRODIGY = '[train]\noptimizer = "prodigy"\n[rounds]\nlearning_rate = 1.0\n'
AT_ONE = "[rounds]\nlearning_rate = 1.0\ndecay = 1.0\n"
STEADY = '[train]\nscheduler = "constant_with_warmup"\n'
ROUND = "[[round]]\nlearning_rate = 1.0\n"


@pytest.mark.parametrize(
    ("code", "lines", "calm"),
    [
        (
            "found-rate",
            '[train]\noptimizer = "prodigy"\n',
            '[train]\noptimizer = "prodigy"\n[rounds]\nlearning_rate = 1.0\ndecay = 1.0\n',
        ),
        (
            "found-rate",
            '[train]\noptimizer = "DAdaptLion"\n[rounds]\nlearning_rate = 1.0\ndecay = 0.5\n',
            '[train]\noptimizer = "lion"\n',
        ),
        (
            "found-rate-blocks",
            PRODIGY + '[lora]\nblocks = "IN04-07, OUT03-06 = 0.5"\n',
            PRODIGY + '[lora]\nblocks = "IN04-07 = 0, OUT03-06 = 1"\n',
        ),
        (
            "found-rate-blocks",
            PRODIGY + '[lora]\nblocks = "ALL0.5"\n',
            '[train]\noptimizer = "lion"\n[lora]\nblocks = "ALL0.5"\n',
        ),
        (
            "found-rate-text",
            '[train]\noptimizer = "prodigy"\ntext_encoder_rate = [1.0, 0.5]\n' + AT_ONE,
            '[train]\noptimizer = "prodigy"\ntext_encoder_rate = [1.0, 0.0]\n' + AT_ONE,
        ),
        (
            "found-rate-text",
            '[train]\noptimizer = "prodigy"\n'
            + AT_ONE
            + ROUND
            + "train = { text_encoder_rate = 0.5 }",
            "[train]\ntext_encoder_rate = 0.5\n",
        ),
        (
            "found-rate-text",
            "[train]\ntext_encoder_rate = 0.5\n"
            + AT_ONE
            + ROUND
            + 'train = { optimizer = "prodigy" }',
            "[train]\ntext_encoder_rate = 0.5\n" + AT_ONE + ROUND,
        ),
        (
            "averaged-schedule",
            '[train]\noptimizer = "schedulefreeadamw"\nscheduler = "cosine"\n',
            '[train]\noptimizer = "schedulefreeadamw"\nscheduler = "constant_with_warmup"\n',
        ),
        (
            "averaged-twice",
            STEADY + 'optimizer = "schedulefreeadamw"\nema_decay = 0.99\n',
            STEADY + 'optimizer = "schedulefreeadamw"\n',
        ),
        (
            "averaged-twice",
            STEADY + "ema_decay = 0.99\n" + ROUND + 'train = { optimizer = "ScheduleFreeRAdam" }',
            STEADY + "ema_decay = 0.99\n" + ROUND,
        ),
    ],
)
def test_what_an_optimizer_is_warned_of(
    write_recipe: WriteRecipe, code: str, lines: str, calm: str
) -> None:
    found = [trap.code for trap in training_traps(load_build(write_recipe(lines)))]
    TOLD.update(found)
    assert found == [code]
    assert list(training_traps(load_build(write_recipe(calm)))) == []


SDXL = BaseFacts("sdxl", "single-file", "v_prediction", True, 9, 9, Path("xl.safetensors"))
SD = BaseFacts("sd15", "single-file", "epsilon", False, 9, 9, Path("base.safetensors"))


@pytest.mark.parametrize(
    ("code", "lines", "base", "stated", "calm"),
    [
        ("sdxl-small", "[resize]\nresolution = 704\n", SDXL, None, (SD, None)),
        (
            "sdxl-small",
            "[resize]\nresolution = 1024\nmore_resolutions = [512]\n",
            SDXL,
            None,
            (SD, None),
        ),
        ("prediction-type", "", SDXL, "epsilon", (SDXL, "v_prediction")),
        ("noise-at-zero-snr", "[train]\nnoise_offset = 0.05\n", SDXL, None, (SD, None)),
        ("noise-at-zero-snr", "[train]\nmultires_noise = 6\n", SDXL, None, (SD, None)),
    ],
)
def test_what_a_base_is_warned_of(
    write_recipe: WriteRecipe,
    code: str,
    lines: str,
    base: BaseFacts,
    stated: str | None,
    calm: tuple[BaseFacts, str | None],
) -> None:
    recipe = load_build(write_recipe(lines))
    found = [trap.code for trap in base_traps(recipe, base, stated)]
    TOLD.update(found)
    assert found == [code]
    assert list(base_traps(recipe, *calm)) == []


def test_regularisation_pictures_are_looked_at(tmp_path: Path, write_recipe: WriteRecipe) -> None:
    def known(real: bool) -> Known:
        folder = tmp_path / str(real)
        folder.mkdir()
        alpha = 255 if real else 0
        Image.new("RGBA", (8, 8), (9, 9, 9, alpha)).save(folder / "a.png")
        text = PngInfo()
        text.add_text("author" if real else "parameters", "1girl, Steps: 20")
        Image.new("RGB", (8, 8)).save(folder / "b.png", pnginfo=text)
        Image.new("RGB", (8, 8)).save(folder / "c.jpg")
        rows = [
            ImageRecord(
                md5=name,
                path=name,
                width=8,
                height=8,
                score=None,
                tags={"meta": ("ai-generated",)} if name == "c.jpg" and not real else {},
                rating="general",
                source=name,
            )
            for name in ("a.png", "b.png", "c.jpg", "gone.png")
        ]
        seen, transparent, generated = looked_at(folder, rows)
        return Known(4, looked_at=seen, transparent=transparent, generated=generated)

    write_recipe()
    dataset = load_dataset(tmp_path / "pictures.toml")
    traps = list(regularisation_traps(dataset, known(real=False)))
    TOLD.update(trap.code for trap in traps)
    assert [t.code for t in traps] == ["transparent-regularisation", "generated-regularisation"]
    assert traps[0].text.startswith("1 of 4") and traps[1].text.startswith("2 of 4")
    assert list(regularisation_traps(dataset, known(real=True))) == []


def test_an_optimizer_that_would_be_refused_is_refused_at_once(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    demo = Path(__file__).parents[2] / "demo" / "base"
    recipe = write_recipe('[train]\noptimizer = "adamw"\noptimizer_args = {epsilon = 1e-6}\n')
    text = recipe.read_text().replace(
        '"base.safetensors"', f'"{demo / "tiny.safetensors"}"\nconfig = "{demo / "config"}"'
    )
    recipe.write_text(text)
    with pytest.raises(RequestError, match=r"adamw takes no epsilon .* Did you mean eps\?"):
        print_check(recipe, tmp_path)
    recipe.write_text(text.replace("epsilon", "eps"))
    print_check(recipe, tmp_path)


def test_warnings_are_silenced_by_code_and_a_wrong_code_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "set.toml"
    path.write_text(BOORU.format(tags="cat", contact=""))
    print_check(path, tmp_path)
    assert "warning [contact]: [download].contact of set is empty" in capsys.readouterr().out
    path.write_text('silence = ["contact"]\n' + path.read_text())
    print_check(path, tmp_path)
    assert "nothing to warn of" in capsys.readouterr().out
    path.write_text(path.read_text().replace('["contact"]', '["contacts"]'))
    with pytest.raises(RequestError, match="silence names contacts, which no warning is called"):
        print_check(path, tmp_path)


MASK_CODES = ("masks-unused", "masks-unread", "no-masks")
MASKED = "[train]\nmasked_loss = true\n"


@pytest.mark.parametrize(
    ("lines", "masks", "label", "codes"),
    [
        ('[cache]\nmasks = "alpha"\n', False, False, {"masks-unused"}),
        (
            f'[cache]\nmasks = "alpha"\n{MASKED}unmasked_weight = 1\n',
            False,
            False,
            {"masks-unused"},
        ),
        (f'[cache]\nmasks = "alpha"\n{MASKED}', False, False, set()),
        (f'[cache]\nmasks = "alpha"\n{MASKED}', True, False, {"masks-unread"}),
        ("", True, False, {"masks-unread"}),
        (f'[cache]\nmasks = "files"\n{MASKED}', False, False, {"no-masks"}),
        (f'[cache]\nmasks = "files"\n{MASKED}', False, True, set()),
        (f'[cache]\nmasks = "files"\n{MASKED}', True, False, set()),
    ],
)
def test_masks_that_do_nothing(
    write_recipe: WriteRecipe,
    tmp_path: Path,
    lines: str,
    masks: bool,
    label: bool,
    codes: set[str],
) -> None:
    from pipeline.artefacts.job import load_job
    from urushi import check

    recipe = write_recipe(lines, '[masks]\nfolder = "masks"\n' if masks else "")
    (tmp_path / "masks").mkdir()
    for place in (*["masks/a.png"] * masks, *["pictures/a-masklabel.png"] * label):
        Image.new("L", (8, 8)).save(tmp_path / place)
    found = {trap.code for trap in check._traps(load_job(recipe, tmp_path / "workspace"))}
    TOLD.update(found & set(MASK_CODES))
    assert found & set(MASK_CODES) == codes


def test_masks_that_are_not_there_are_missed_before_anything_is_fetched(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe = write_recipe("", '[masks]\nfolder = "nowhere"\n')
    with pytest.raises(RequestError, match=r"There is no folder .*nowhere \(\[masks\].folder of"):
        print_check(recipe, tmp_path)


def test_a_disk_that_is_too_small(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.artefacts.job import load_job
    from urushi import check
    from urushi.plan import disk_bytes

    recipe = write_recipe("[rounds]\ncount = 3\n")
    assert disk_bytes(load_job(recipe, tmp_path)) is None
    with open(tmp_path / "base.safetensors", "wb") as file:
        file.truncate(1000)
    # Three rounds' checkpoints and the final one, and the text of the empty caption.
    needed = disk_bytes(load_job(recipe, tmp_path))
    assert needed == 4 * 1000 + 77 * 768 * 2
    for free, told in ((needed, False), (needed - 1, True)):
        usage = (10 * needed, 0, free)
        monkeypatch.setattr(check.shutil, "disk_usage", lambda _, u=usage: Usage(*u))
        codes = [trap.code for trap in check._traps(load_job(recipe, tmp_path))]
        TOLD.update(codes)
        assert ("disk" in codes) == told


def test_every_code_is_told_of_above_and_listed() -> None:
    """Runs last: pytest keeps the order of a file."""
    assert set(CODES) == TOLD
    listed = re.findall(r"^\| `([a-z-]+)` \|", WARNINGS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(CODES) and len(set(CODES)) == len(CODES)
