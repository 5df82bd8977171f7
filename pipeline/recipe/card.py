"""[card]: what the model card says that nobody can measure."""

from pydantic import Field

from pipeline.recipe.section import Section


class Card(Section):
    """README.md beside the final checkpoint. Decides no weight."""

    licence: str = Field("other", min_length=1)
    """Of the model, as model hubs spell it: "creativeml-openrail-m", "faipl-1.0-sd", "other"."""
    base_model: str | None = None
    """The origin's name on a model hub, "owner/name"."""
    trigger_words: tuple[str, ...] = ()
    """Words that call what was taught; default: the tags that stand in nearly every caption."""
    note: str = ""
    """A paragraph of your own, in Markdown, under the title."""
