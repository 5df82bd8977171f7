"""A small real build for the flows: drawings in a folder, the tiny base, two short rounds."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from demo.drawings import draw, lacquer_scene
from urushi.recipes import tiny_base

PICTURES = 16
BUILD = """
name = "coat"
seed = 5

[base]
checkpoint = "{base}/tiny.safetensors"
config = "{base}/config"

[dataset]
recipe = "drawings.toml"

[resize]
resolution = 64
step = 16
min_side = 48
max_side = 96

[lora]
rank = 2
conv_rank = 0

[train]
batch_size = 2
optimizer = "adamw"
save_every = 2

[rounds]
count = 2
learning_rate = 2e-3
decay = 0.5
steps = [{steps}]
held_out = 0.3
held_out_timesteps = 1
gate = "always"
strength = 0.5
{rounds}

[preview]
prompts = ["1figure, red circle"]
steps = 2
"""

SmallBuild = Callable[..., Path]


@pytest.fixture
def small_build(tmp_path: Path) -> SmallBuild:
    """small_build(steps=6, rounds='approve = "each round"') -> path of a build recipe."""

    def write(steps: int = 6, rounds: str = "", count: int = PICTURES) -> Path:
        rng = np.random.default_rng(4)
        pictures = tmp_path / "pictures"
        pictures.mkdir(exist_ok=True)
        for number in range(count):
            scene = lacquer_scene(rng)
            draw(scene, 80, 80).save(pictures / f"{number:02d}.png")
            (pictures / f"{number:02d}.txt").write_text(", ".join(scene.general_tags()))
        dataset = 'name = "drawings"\n[folder]\npath = "pictures"\n'
        (tmp_path / "drawings.toml").write_text(dataset)
        recipe = tmp_path / "build.toml"
        recipe.write_text(BUILD.format(base=tiny_base(), steps=steps, rounds=rounds))
        return recipe

    return write


URUSHI = Path(sys.executable).with_name("urushi")
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def clean_environment(**more: str) -> dict[str, str]:
    """Ours without settings of Prefect's, one thread for torch, no card to wait for."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return ours | {"OMP_NUM_THREADS": "1", "URUSHI_GPUS": ""} | more


class Standing:
    """`urushi up` on a workspace, and what its server says."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.environment = clean_environment()
        self.process: subprocess.Popen[bytes] | None = None
        self.api = ""

    @property
    def home(self) -> Path:
        return self.workspace / "prefect"

    @property
    def log(self) -> str:
        path = self.home / "up.log"
        return path.read_text() if path.exists() else ""

    def start(self, *words: str, seconds: float = 400.0) -> None:
        """Starts it, and returns once it is ready."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [URUSHI, "up", "--workspace", self.workspace, "--port", str(port), *words]
        self.process = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        pid = self.process.pid
        self.until(lambda: self.address(pid) or self.process.poll() is not None, seconds)
        assert self.process.poll() is None, self.log[-3000:]
        self.api = self.address(pid)

    def address(self, pid: int) -> str:
        """The API of the server that process `pid` started; empty while it is not ready."""
        try:
            found = json.loads((self.home / "up.json").read_text())
        except FileNotFoundError:
            return ""
        return str(found["api"]) if found["pid"] == pid else ""

    @staticmethod
    def until(true: Callable[[], Any], seconds: float) -> None:
        """Waits for it to become true; TimeoutError where it does not."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.3)

    def end(self) -> int:
        """Ctrl-C; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(200)

    def processes(self) -> list[psutil.Process]:
        """Every process that works for this workspace's Prefect, found by what it was started with:
        the environment goes from parent to child."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("PREFECT_HOME") == str(self.home):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def urushi(self, *words: str | Path) -> "subprocess.CompletedProcess[str]":
        """A verb on this workspace; it must succeed."""
        ended = subprocess.run(
            [URUSHI, *words, "--workspace", self.workspace],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=400,
        )
        assert ended.returncode == 0, ended.stderr + self.log[-3000:]
        return ended

    def deploy(self, recipe: Path, *words: str) -> str:
        """Deploys it and starts a run, whose id is returned."""
        told = self.urushi("deploy", recipe, "--now", *words).stdout
        return re.findall(r"^run +(\S+)$", told, re.MULTILINE)[0]

    def ask(self, path: str, **body: Any) -> Any:
        """The API's answer: a POST where there is a body."""
        with requests.Session() as session:
            # As Prefect's own client does: SQLite has one writer, and a busy server asks for
            # patience.
            patient = Retry(5, status_forcelist=[503], backoff_factor=0.5, allowed_methods=None)
            session.mount("http://", HTTPAdapter(max_retries=patient))
            method = session.post if body else session.get
            answer = method(f"{self.api}{path}", json=body or None, timeout=60)
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    def runs(self) -> list[dict[str, Any]]:
        """Every flow run, oldest first."""
        found: list[dict[str, Any]] = self.ask("/flow_runs/filter", sort="START_TIME_ASC")
        return found

    def run(self, identity: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(f"/flow_runs/{identity}")
        return found

    def wait(self, identity: str, states: set[str], seconds: float = 400.0) -> dict[str, Any]:
        """The run once it is in one of `states`."""
        try:
            self.until(lambda: self.run(identity)["state_type"] in states, seconds)
        except TimeoutError:
            raise AssertionError(f"{self.run(identity)['state']}\n{self.log[-4000:]}") from None
        return self.run(identity)


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    """One `urushi up` for all tests that leave it running."""
    found = Standing(tmp_path_factory.mktemp("standing") / "workspace")
    found.start()
    yield found
    assert found.end() == 0


@pytest.fixture
def own_standing(tmp_path: Path) -> Iterator[Standing]:
    """A workspace whose `urushi up` the test starts, kills and starts again."""
    found = Standing(tmp_path / "workspace")
    yield found
    if found.process is not None and found.process.poll() is None:
        found.end()
