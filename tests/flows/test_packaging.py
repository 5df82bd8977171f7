"""The units that ship are read by systemd itself."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "packaging" / "systemd").glob("urushi*.[st]*"))


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Under a home that has the program and the environment file, as the units' heads say."""
    home = tmp_path / "home"
    for place in (".local/bin", ".config/urushi", ".config/systemd/user"):
        (home / place).mkdir(parents=True)
    program = home / ".local" / "bin" / "urushi"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = []
    for unit in UNITS:
        if unit.suffix in (".service", ".timer"):
            copy = home / ".config" / "systemd" / "user" / unit.name
            copy.write_text(unit.read_text().replace("%h", str(home)))
            units.append(copy)
    assert len(units) == 5
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units],
        capture_output=True,
        text=True,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert ended.returncode == 0, ended.stderr
    assert [line for line in ended.stderr.splitlines() if "urushi" in line] == []


def test_the_units_call_verbs_that_there_are() -> None:
    told = subprocess.run(
        [Path(sys.executable).with_name("urushi"), "--help"],
        capture_output=True,
        text=True,
    ).stdout
    verbs = set(re.findall(r"^  ([a-z]+)  ", told, re.MULTILINE))
    for unit in UNITS:
        for verb in re.findall(r"^ExecStart=\S+/urushi (\w+)", unit.read_text(), re.MULTILINE):
            assert verb in verbs


def test_stopping_leaves_the_runs_time_to_save() -> None:
    """systemd must not kill before `urushi up` itself would."""
    from flows.worker import SAVE_SECONDS

    for name in ("urushi.service", "urushi-worker.service"):
        text = (ROOT / "packaging" / "systemd" / name).read_text()
        (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
        assert int(seconds) >= SAVE_SECONDS + 30
        # One signal to `up` alone: its runs are asked by it, in order.
        assert "\nKillMode=mixed\n" in text


TEMPLATES = sorted(ROOT.glob("packaging/*/base-job-template.json"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.parent.name)
def test_every_variable_of_a_job_template_is_used_and_known(path: Path) -> None:
    """Prefect drops a variable that its job configuration does not name, without a word."""
    template = json.loads(path.read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])


def test_the_image_has_every_room_that_is_installed() -> None:
    text = (ROOT / "packaging" / "docker" / "Dockerfile").read_text()
    copied = {
        word for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for word in line.split()
    }
    assert all((ROOT / name).exists() for name in copied)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = {name.partition(".")[0] for name in settings["packages"]}
    data = {place.split("/")[0] for files in settings["data-files"].values() for place in files}
    assert rooms | data <= copied
