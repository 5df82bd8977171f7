"""Exit codes, messages and times of the command line, seen from outside."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from PIL import Image

from pipeline.stages import STAGES

Urushi = Callable[..., subprocess.CompletedProcess[str]]
WriteRecipe = Callable[..., Path]

VERBS = [
    *("demo", "booru", "new", "check", "plan", "run", "status", "schema", "merge", "report"),
    *("rebuild", "lora", "mix", "credits"),
    *(stage.name for stage in STAGES),
]


def test_help_lists_every_verb(urushi: Urushi) -> None:
    shown = urushi("--help").stdout
    for verb in VERBS:
        assert f"\n  {verb} " in shown
    assert "..." not in shown.partition("Commands:")[2], "a verb's line was cut"


WITH_VERBS = {"lora": ("info", "resize", "extract", "concat", "convert")}
"""Verbs that have verbs of their own."""


@pytest.mark.parametrize(
    "words",
    [
        (verb, *inner)
        for verb in VERBS
        for inner in ([(w,) for w in WITH_VERBS.get(verb, ())] or [()])
    ],
    ids=" ".join,
)
def test_every_verb_takes_a_workspace(urushi: Urushi, words: tuple[str, ...]) -> None:
    ended = urushi(*words, "--help")
    assert ended.returncode == 0
    assert "--workspace" in ended.stdout and "URUSHI_WORKSPACE" in ended.stdout


def test_help_answers_at_once(urushi: Urushi) -> None:
    """Under 0.3 s more than a bare Python; a verb's help, where typer wants pydantic, under 0.6.

    Medians of processor time: other work may go on here.
    """

    def seconds(run: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            before = os.times()
            run()
            after = os.times()
            spent = after.children_user - before.children_user
            times.append(spent + after.children_system - before.children_system)
        return median(times)

    bare = seconds(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True))
    for words, most in ((["--help"], 0.3), (["run", "--help"], 0.6)):
        ours = seconds(lambda words=words: urushi(*words))
        print(f"urushi {' '.join(words)}: {ours - bare:.3f} s more than bare Python's {bare:.3f} s")
        assert ours - bare < most


def test_wrong_words_end_with_2(urushi_here: Urushi, tmp_path: Path) -> None:
    for words in (["polish"], ["run"], ["run", "a", "b"], ["schema", "paint"], ["merge", "--x"]):
        ended = urushi_here(*words)
        assert ended.returncode == 2, words
        assert "Traceback" not in ended.stderr
    ended = urushi_here("run", "none.toml")
    assert ended.returncode == 2
    assert ended.stderr == "urushi: There is no recipe none.toml. `urushi new NAME` writes one.\n"


def test_wrong_recipes_end_with_2_and_the_nearest_name(
    urushi_here: Urushi, write_recipe: WriteRecipe
) -> None:
    recipe = write_recipe("[rounds]\nstrenght = 'auto'\n")
    for verb in ("check", "plan", "run", "train", "download"):
        ended = urushi_here(verb, recipe)
        assert ended.returncode == 2
        assert "Did you mean strength?" in ended.stderr and "Traceback" not in ended.stderr


def test_a_stage_that_needs_a_build_refuses_a_dataset(
    urushi: Urushi, write_recipe: WriteRecipe
) -> None:
    ended = urushi("resize", write_recipe().with_name("pictures.toml"))
    assert ended.returncode == 2
    assert "needs a build recipe" in ended.stderr


@pytest.mark.prefect
def test_a_base_that_cannot_be_trained_ends_with_2_before_anything_is_fetched(
    urushi: Urushi, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe = write_recipe()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "a.png")
    missing = urushi("run", recipe)
    (tmp_path / "base.safetensors").write_text("this is a note about a checkpoint\n" * 9)
    text = urushi("run", recipe)
    for ended, words in ((missing, "There is no checkpoint"), (text, "is a text file")):
        assert ended.returncode == 2, ended.stderr
        assert words in ended.stderr and "Traceback" not in ended.stderr
        assert "base.safetensors" in ended.stderr and "Prefect" not in ended.stderr
    assert not (tmp_path / "workspace" / "datasets").exists()


@pytest.mark.parametrize("verb", ["download", pytest.param("run", marks=pytest.mark.prefect)])
def test_a_workspace_that_is_a_file_ends_with_2(
    urushi: Urushi, write_recipe: WriteRecipe, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "taken").write_text("")
    recipe = write_recipe()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "a.png")
    ended = urushi(verb, recipe, "--workspace", tmp_path / "taken")
    assert ended.returncode == 2, ended.stderr
    assert "--workspace" in ended.stderr and "Traceback" not in ended.stderr


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [Path(sys.executable).with_name("urushi"), "booru", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # Of its own session, so that the signal is for it alone.
        start_new_session=True,
    )
    assert process.stdout is not None
    assert "posts.json" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode in (0, 130)


def test_an_interrupted_verb_can_be_repeated(tmp_path: Path) -> None:
    code = """
import urushi.status
def interrupted(workspace, as_json):
    raise KeyboardInterrupt
urushi.status.print_status = interrupted
from urushi.cli import main
main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, "status"], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 130
    assert "Run the same command again to go on." in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("raised", "code", "shown"),
    [
        ("pipeline.errors.DiskFullError('no room')", 3, "urushi: no room\n"),
        ("pipeline.errors.GateStopped('two rejected')", 4, "urushi: two rejected\n"),
        ("pipeline.errors.BusyError('busy')", 1, "urushi: busy\n"),
        ("merge.MergeError('no match', 2)", 2, "urushi: no match\n"),
        ("merge.MergeError('no room', 3)", 3, "urushi: no room\n"),
        ("MemoryError()", 1, "urushi: There is not enough memory (Python was refused some). What"),
        (
            "RuntimeError('could not create a primitive')",
            1,
            "urushi: There is not enough memory (could not create a primitive). What was finished",
        ),
        ("RuntimeError('could not create a primitive descriptor')", 1, "Traceback"),
        ("ZeroDivisionError('our bug')", 1, "Traceback"),
    ],
)
def test_errors_become_messages_and_codes(
    tmp_path: Path, raised: str, code: int, shown: str
) -> None:
    program = f"""
import merge, pipeline.errors, urushi.status
def failing(workspace, as_json):
    raise {raised}
urushi.status.print_status = failing
from urushi.cli import main
main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, "status"], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == code
    assert ended.stderr.startswith(shown)


def test_schema(urushi: Urushi) -> None:
    build = json.loads(urushi("schema").stdout)
    assert set(build["required"]) == {"name", "base", "dataset"}
    dataset = json.loads(urushi("schema", "dataset").stdout)
    assert "tags" in dataset["$defs"]["Download"]["properties"]


def test_torch_threads_soon_sleep_unless_told_otherwise(tmp_path: Path) -> None:
    program = """
import os, urushi.status
urushi.status.print_status = lambda *_: print(os.environ.get("GOMP_SPINCOUNT"))
from urushi.cli import main
main()
"""
    ours = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    for extra, seen in (
        ({}, "1000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", program, "status"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**environment, **extra},
        )
        assert ended.stdout.strip() == seen
