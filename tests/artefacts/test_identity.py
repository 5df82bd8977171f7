import os
import time
from pathlib import Path

import pytest
from blake3 import blake3

from pipeline.artefacts import identity
from pipeline.artefacts.identity import Identities, digest_file, fingerprint, mark_of


def test_fingerprints_depend_on_every_part_and_on_nothing_else() -> None:
    one = fingerprint(a=1, b={"x": [1, 2], "y": None})
    assert one == fingerprint(b={"y": None, "x": [1, 2]}, a=1)
    assert len(one) == 20 and int(one, 16) >= 0
    others = {
        fingerprint(a=2, b={"x": [1, 2], "y": None}),
        fingerprint(a=1, b={"x": [2, 1], "y": None}),
        fingerprint(a="1", b={"x": [1, 2], "y": None}),
        fingerprint(a=1, b={"x": [1, 2]}),
        fingerprint(a=1, c={"x": [1, 2], "y": None}),
    }
    assert len(others | {one}) == 6


def test_a_fingerprint_is_fixed_for_all_time() -> None:
    """Workspaces outlive versions: a changed spelling here would make everything again."""
    canonical = '{"rank":16,"tag":"漆"}'
    assert fingerprint(tag="漆", rank=16) == blake3(canonical.encode()).hexdigest()[:20]


def test_digests_are_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "base.safetensors", []
    path.write_bytes(b"one")

    def counted(file: Path) -> str:
        read.append(file)
        return digest_file(file)

    monkeypatch.setattr(identity, "digest_file", counted)
    memory = tmp_path / "workspace" / "identities.json"
    first = Identities(memory).of(path)
    assert first == blake3(b"one").hexdigest()
    assert Identities(memory).of(path) == first
    assert len(read) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 5))
    assert Identities(memory).of(path) == blake3(b"two").hexdigest()
    assert len(read) == 2


def test_a_lost_or_damaged_memory_costs_only_time(tmp_path: Path) -> None:
    path, memory = tmp_path / "a", tmp_path / "identities.json"
    path.write_bytes(b"one")
    for damage in ("", "{", "[1]", '{"x": 3}'):
        memory.write_text(damage)
        assert Identities(memory).of(path) == blake3(b"one").hexdigest()


def test_a_folders_identity_is_its_files_and_their_names(tmp_path: Path) -> None:
    memory = tmp_path / "identities.json"

    def of(files: dict[str, str]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return Identities(memory).of(folder)

    one = of({"unet/a.json": "1", "b.json": "2"})
    assert one == of({"b.json": "2", "unet/a.json": "1"})
    assert one != of({"unet/a.json": "1", "c.json": "2"})
    assert one != of({"unet/a.json": "1", "b.json": "3"})


def test_a_digest_made_elsewhere_is_kept_while_its_file_stays(tmp_path: Path) -> None:
    path, memory = tmp_path / "a", tmp_path / "identities.json"
    path.write_bytes(b"one")
    assert Identities(memory).recall(str(path), mark_of(path)) is None
    Identities(memory).keep(str(path), mark_of(path), "made elsewhere")
    assert Identities(memory).of(path) == "made elsewhere"
    path.write_bytes(b"another")
    assert Identities(memory).recall(str(path), mark_of(path)) is None
