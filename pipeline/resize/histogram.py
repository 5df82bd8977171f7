"""A survey of buckets into a picture: one bar for each bucket, from tall shapes to wide ones."""

from pathlib import Path

from matplotlib.figure import Figure

from pipeline.artefacts.files import atomic
from pipeline.resize.survey import Survey

FULL, GROWN, LINE = "#3b6ea8", "#e0a030", "#b03040"
ROW = 0.26
"""Inches a bucket takes."""


def draw_histogram(survey: Survey, title: str, path: Path) -> None:
    """Writes a PNG with the counts of every bucket, and beside them what cropping loses."""
    figure = Figure(figsize=(9, 1.6 + ROW * len(survey.buckets)), layout="constrained")
    counts, losses = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    rows = range(len(survey.buckets))
    grown = [one.enlarged for one in survey.buckets]
    whole = [one.pictures - one.enlarged for one in survey.buckets]
    counts.barh(rows, whole, color=FULL, label="large enough")
    if any(grown):
        counts.barh(rows, grown, left=whole, color=GROWN, label="enlarged")
        counts.legend(loc="lower right", frameon=False)
    most = max((one.pictures for one in survey.buckets), default=1)
    for row, one in zip(rows, survey.buckets, strict=True):
        counts.text(one.pictures + most * 0.01, row, f"{one.pictures:,}", va="center", fontsize=8)
    counts.set_yticks(rows, [str(one.bucket) for one in survey.buckets], fontsize=8)
    counts.set_xlim(0, most * 1.12)
    counts.invert_yaxis()
    counts.set_xlabel("pictures")
    losses.barh(rows, [100 * one.lost for one in survey.buckets], color=LINE)
    losses.set_xlabel("cropped away, % of pixels")
    for axes in (counts, losses):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{title}: {survey.pictures:,} pictures in {len(survey.buckets)} buckets, "
        f"{survey.lost:.1%} of pixels cropped away",
        fontsize=11,
    )
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
