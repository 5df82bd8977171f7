"""What cannot be deployed is refused before a server is asked."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.deploy import Wish, deploy
from pipeline.errors import RequestError

WriteRecipe = Callable[..., Path]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cron": "0 2 * *"}, "4 fields and not 5"),
        ({"timezone": "Mars/Olympus"}, "no time zone Mars/Olympus"),
        ({"timezone": "../etc"}, "no time zone"),
    ],
)
def test_bad_schedules_say_what_is_wrong(
    write_recipe: WriteRecipe, tmp_path: Path, wrong: dict[str, str], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        deploy(Wish(write_recipe(), tmp_path / "workspace", **wrong))  # type: ignore[arg-type]


def test_a_dataset_recipe_has_no_rounds_to_build(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = write_recipe().with_name("pictures.toml")
    with pytest.raises(RequestError, match="is a dataset recipe"):
        deploy(Wish(recipe, tmp_path / "workspace", "build"))


@pytest.mark.prefect
def test_a_server_that_does_not_answer_is_told_in_one_line(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    urushi = Path(sys.executable).with_name("urushi")
    words = [urushi, "doctor", "--workspace", tmp_path / "workspace"]
    with socket.create_server(("127.0.0.1", 0)) as shut:
        api = f"http://127.0.0.1:{shut.getsockname()[1]}/api"
    ended = subprocess.run(
        words, capture_output=True, text=True, env=environment | {"PREFECT_API_URL": api}
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("urushi: Prefect's server does not answer (ConnectError: ")
    assert "`urushi up` runs one" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_a_server_it_says_how_to_start_one(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    urushi = Path(sys.executable).with_name("urushi")
    words = [urushi, "deploy", write_recipe(), "--workspace", tmp_path / "workspace"]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert ended.returncode == 2
    assert "Start one with `urushi up" in ended.stderr
