"""[scale]: where shards are resized and cached. It changes nothing of what comes out."""

from pydantic import Field

from pipeline.recipe.section import DaskAddress, Section


class Scale(Section):
    """Where shards are resized and cached."""

    workers: int | None = Field(None, ge=1)
    """Processes on this machine; by default one per core for resizing, one per GPU for caching."""
    dask: DaskAddress | None = None
    """A Dask scheduler, "tcp://host:8786", whose workers see the workspace, the base and the
    pictures under the same paths and have this program installed. Needs the extra "dask"."""
