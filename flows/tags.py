"""How Prefect tells our deployments and runs from others, and one machine's from another's."""

from pipeline.artefacts.locks import host

TAG = "urushi"


def host_tag() -> str:
    """Marks deployments whose paths are this machine's."""
    return f"host:{host()}"
