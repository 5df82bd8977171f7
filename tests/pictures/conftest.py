from types import ModuleType

import pytest


@pytest.fixture(params=["vips", "pillow"])
def engine(request: pytest.FixtureRequest) -> ModuleType | None:
    """Both ways through: the vips engine, and None for a machine without it."""
    if request.param == "pillow":
        return None
    from pipeline.pictures import vips

    vips.prepare(threads=1)
    return vips
