from pipeline.size import Size


def test_size() -> None:
    size = Size(width=640, height=960)
    assert (size.area, str(size)) == (614_400, "640x960")
    assert size.ratio == 2 / 3
