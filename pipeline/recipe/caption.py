"""The dataset recipe's [caption]: how tags and score become a caption, as an ordered list of rules.

A preset (`preset = "character"`) is a file of such rules, in presets/, with a reason beside each;
what the recipe says itself comes after it and wins.
"""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.recipe.quality import SCHEMES, Cuts, Percentiles, Scheme, falling
from pipeline.recipe.section import RecipePath, Section, Word

Category = Literal["general", "artist", "copyright", "character", "meta"]
Rating = Literal["general", "sensitive", "questionable", "explicit"]
Preset = Literal["character", "situation", "style", "object", "model"]
Slot = Literal["count", "character", "series", "rest", "quality", "rating", "year"]

ORDER: tuple[Slot, ...] = ("count", "character", "series", "rest", "quality", "rating", "year")
"""Counts, characters and series first, as Animagine and its kin were trained; score words last."""

VISUAL_META = ("monochrome", "greyscale", "sketch", "lineart", "traditional_media")
"""Meta tags that say what one sees."""


class Rule(Section):
    """One rule; exactly one of `drop`, `rename`, `collapse`, `fold`, `add`. Tags are named as the
    site spells them or in plain words; in `drop` and `fold`, `*` stands for any letters."""

    drop: tuple[str, ...] = ()
    """These tags go."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Tag to what the caption says instead: tags that share words bleed into one another, so
    `aiming_at_viewer` is better `aav`."""
    collapse: tuple[str, ...] = ()
    """Of these, the first that a picture has stays and the others go: "assault_rifle", "rifle",
    "gun", "weapon" say one thing four times, and contradicting tags say two."""
    fold: tuple[str, ...] = ()
    """These tags go where the picture has the tag `into`, which then stands for them."""
    into: str | None = None
    """The trigger word of `fold`: a tag that the picture must have, such as the character's."""
    add: tuple[str, ...] = ()
    """Texts that every caption of the dataset says, before all else: a trigger word."""
    reason: str = ""
    """Why; shown by `urushi caption --explain`."""

    @model_validator(mode="after")
    def _does_one_thing(self) -> Self:
        done = [verb for verb in VERBS if getattr(self, verb)]
        if len(done) != 1:
            said = " and ".join(done) or "nothing"
            raise ValueError(f"must do exactly one of {', '.join(VERBS)}; it says {said}")
        if bool(self.fold) != (self.into is not None):
            raise ValueError("fold needs into, the trigger word, and nothing else has one")
        if len(self.collapse) == 1:
            raise ValueError("collapse needs two tags or more")
        return self

    @property
    def verb(self) -> str:
        """Which of VERBS it is."""
        return next(verb for verb in VERBS if getattr(self, verb))


VERBS = ("drop", "rename", "collapse", "fold", "add")


class Variation(Section):
    """[caption.variation]: other texts for the same picture, so that a model does not learn the
    order of tags. They are made and encoded once; training draws one for each time it shows the
    picture."""

    count: int = Field(1, ge=1, le=100)
    """Texts of a picture at most, its caption included. Text shards grow by this factor."""
    shuffle: bool = False
    """Whether tags change places."""
    keep: int = Field(0, ge=0)
    """So many tags at the start stay there and are never left out: trigger words, say."""
    separator: Word | None = None
    """What stands before it in a picture's tags is kept, too, and it is never said: "|||", as
    captions for kohya's scripts have it."""
    tag_dropout: float = Field(0.0, ge=0, lt=1)
    """The probability with which each tag behind the kept ones is left out."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Other shuffles for another number."""

    @model_validator(mode="after")
    def _varies(self) -> Self:
        if (self.shuffle or self.tag_dropout) and self.count < 2:
            raise ValueError("shuffle and tag_dropout need count = 2 or more: texts of a picture")
        return self


class Caption(Section):
    """How tags and score become a caption."""

    preset: Preset | None = None
    """Rules to start from, by what is taught: a character, a situation, a style, an object, or the
    whole model."""
    quality: Cuts | Percentiles | Scheme = SCHEMES["urushi"]
    """[least score, word] pairs, percentiles, or a scheme by name: "urushi", "animagine-3.0",
    "animagine-3.1", "noobai", "pony-like"."""
    score_age_hours: float = Field(72.0, ge=0)
    """Scores read sooner than this after a post was made say little, and are not used."""
    rating_words: dict[Rating, str] = Field(default_factory=dict)
    """What a caption says for a rating: { general = "safe" }. None by default."""
    year_words: tuple[tuple[int, str], ...] = ()
    """[first year, word] pairs, from the newest down, by when a post was made. None by default."""
    drop_categories: tuple[Category, ...] = ("artist", "meta")
    """Tags of these categories never reach a caption."""
    keep_tags: tuple[str, ...] = VISUAL_META
    """Tags that stay although their category goes."""
    drop_tags: tuple[str, ...] = ()
    """Tags dropped by name, as the site spells them; `*` stands for any letters."""
    artist_names: tuple[str, ...] = ()
    """Further names of artists, as a site spells them: names that they had before, circles. No
    caption says one, nor a tag that names one."""
    rule: tuple[Rule, ...] = ()
    """[[caption.rule]] tables, in their order, after the preset's."""
    order: tuple[Slot, ...] = ORDER
    """Which kinds of words a caption says, in which order; one that is not listed is left out."""
    max_tokens: int | None = Field(None, ge=1)
    """Tokens of a caption at most, start and end not counted; CLIP reads 75. What is over it is
    left out by whole tags: the last of the ordinary ones first, score words and names last."""
    tokenizer: RecipePath | None = None
    """The folder of the model's tokenizer, by which max_tokens counts: tokenizer.json, or
    vocab.json and merges.txt."""
    variation: Annotated[Variation, Field(default_factory=Variation)]
    """Other texts for the same picture."""

    @model_validator(mode="before")
    @classmethod
    def _on_its_preset(cls, table: Any) -> Any:
        name = table.get("preset") if isinstance(table, dict) else None
        if name not in PRESETS:
            return table
        preset = preset_table(name)
        own = list(table.get("rule", ()))
        # A recipe that was written out with its preset's rules has them already.
        there = [rule.model_dump() if isinstance(rule, Rule) else rule for rule in own]
        before = [rule for rule in preset.pop("rule", []) if not _among(rule, there)]
        return {**preset, **table, "rule": [*before, *own]}

    @model_validator(mode="after")
    def _renames_end(self) -> Self:
        to = {_folded(a): _folded(b) for rule in self.rule for a, b in rule.rename.items()}
        for start in to:
            seen, name = [start], to[start]
            while name in to and name not in seen:
                seen.append(name)
                name = to[name]
            if name in seen and to[start] != start:
                circle = " -> ".join([*seen[seen.index(name) :], name])
                raise ValueError(f"renames in a circle: {circle}")
        return self

    @model_validator(mode="after")
    def _counts_by_a_tokenizer(self) -> Self:
        if self.max_tokens is not None and self.tokenizer is None:
            raise ValueError(
                "has max_tokens and no tokenizer to count by: name the folder of the model's own"
            )
        return self

    @field_validator("quality")
    @classmethod
    def _falls(cls, quality: Cuts | Percentiles | Scheme) -> Cuts | Percentiles | Scheme:
        return falling(quality) if isinstance(quality, tuple) else quality

    @field_validator("year_words")
    @classmethod
    def _years_fall(cls, words: tuple[tuple[int, str], ...]) -> tuple[tuple[int, str], ...]:
        return falling(words)

    @field_validator("order")
    @classmethod
    def _each_once(cls, order: tuple[Slot, ...]) -> tuple[Slot, ...]:
        twice = next((slot for slot in order if order.count(slot) > 1), None)
        if twice is not None:
            raise ValueError(f"names {twice} twice")
        return order

    @property
    def scale(self) -> Cuts | Percentiles:
        """The cuts or percentiles that `quality` means."""
        return SCHEMES[self.quality] if isinstance(self.quality, str) else self.quality


class Tagger(Section):
    """A WD tagger, for pictures that have no tags or too few. Needs the extra "tagger"."""

    model: str = Field(min_length=1)
    """A folder with model.onnx and selected_tags.csv, or an id on Hugging Face's hub such as
    "SmilingWolf/wd-eva02-large-tagger-v3"."""
    mode: Literal["only missing", "append", "replace"] = "only missing"
    """only missing: pictures without any tag. append: tags that a picture has not yet. replace:
    general and character tags are the tagger's alone."""
    general: float = Field(0.35, gt=0, le=1)
    """Least probability of a general tag."""
    character: float = Field(0.75, gt=0, le=1)
    """Least probability of a character's tag: a wrong name does more harm than a wrong ribbon."""
    batch_size: int = Field(4, ge=1)
    """Pictures seen at once."""

    @field_validator("model")
    @classmethod
    def _beside_the_recipe(cls, model: str, info: ValidationInfo) -> str:
        folder = (info.context or {}).get("folder")
        path = Path(model).expanduser()
        beside = Path(folder) / path if folder is not None else path
        return str(beside.resolve()) if beside.is_dir() else model


PRESETS: tuple[Preset, ...] = ("character", "situation", "style", "object", "model")


def preset_table(name: Preset) -> dict[str, Any]:
    """The TOML of a preset: a [caption] table of its own."""
    text = files("pipeline.recipe").joinpath("presets", f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _among(rule: dict[str, Any], rules: list[Any]) -> bool:
    return any(
        isinstance(other, dict)
        and all(_plain(other.get(key)) == _plain(value) for key, value in rule.items())
        for other in rules
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _folded(tag: str) -> str:
    return " ".join(tag.casefold().replace("_", " ").split())
