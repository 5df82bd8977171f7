import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from flows.artifacts import key
from flows.pages import PICTURE_BYTES, data_uri, trouble_page
from pipeline.artefacts.job import load_job
from pipeline.errors import DiskFullError


def test_a_grid_of_any_size_fits_into_the_database() -> None:
    """Noise, which no JPEG likes, at the size of a sheet of twenty columns."""
    noise = np.random.default_rng(1).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(noise).save(png, "PNG", compress_level=0)
    head, _, body = data_uri(png.getvalue()).partition(",")
    assert head == "data:image/jpeg;base64"
    packed = base64.b64decode(body)
    assert len(packed) <= PICTURE_BYTES
    with Image.open(io.BytesIO(packed)) as shown:
        assert shown.width / shown.height == 4 / 3


def test_keys_are_what_prefect_takes() -> None:
    assert key("Blue_Archive 2.0") == "blue-archive-2-0"
    assert key("é") == "run"


def test_trouble_says_what_went_wrong_and_what_to_type(write_recipe, tmp_path: Path) -> None:
    job = load_job(write_recipe(), tmp_path / "workspace")
    page = trouble_page(job, DiskFullError("No room left on the disk while writing x."))
    assert "No room left on the disk while writing x." in page
    assert "Free some space" in page
    assert f"urushi run {job.recipe_path} --workspace {job.workspace.root}" in page
    assert "defect of urushi" in trouble_page(job, ZeroDivisionError("division by zero"))
