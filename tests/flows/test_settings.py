from pathlib import Path

from flows.settings import DEFAULTS, prepare


def test_nothing_leaves_the_machine_or_the_workspace(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    assert prepare(tmp_path, environment) == tmp_path / "prefect"
    assert environment["PREFECT_HOME"] == str(tmp_path / "prefect")
    # Two switches: the server's heartbeat, the client's events.
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert environment["DO_NOT_TRACK"] == "1"
    assert int(environment["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"]) >= 120


def test_what_the_user_set_stays(tmp_path: Path) -> None:
    environment = {"PREFECT_HOME": "/srv/prefect", "PREFECT_LOGGING_LEVEL": "DEBUG"}
    assert prepare(tmp_path, environment) == Path("/srv/prefect")
    assert environment["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert set(DEFAULTS) <= set(environment)
