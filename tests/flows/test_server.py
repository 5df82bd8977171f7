import subprocess
import sys
from pathlib import Path

import pytest

from flows.server import Server
from pipeline.errors import UrushiError


def test_a_server_that_ends_is_told_with_its_log(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    server = Server("http://127.0.0.1:9/api", tmp_path / "server.log", process)
    with pytest.raises(UrushiError, match=r"did not start; .*server\.log says why"):
        server.wait(30)
    process.wait()
