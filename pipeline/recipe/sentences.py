"""What pydantic finds wrong with a recipe into sentences that name the key and the remedy."""

import difflib
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

SHOULD = {
    "tuple_type": "should be a list, in [ ]",
    "model_type": "should be a table of keys",
    "string_type": "should be a text, in quotes",
    "path_type": "should be a path, in quotes",
    "string_pattern_mismatch": "should be lower-case letters, digits, _ and -, "
    "a letter or digit first, at most 64",
    "too_short": "should not be empty",
    "string_too_short": "should not be empty",
}
"""What pydantic's problems mean in a recipe, where its own words speak of Python."""

KINDS = {
    "literal_error": "",
    "float_type": "a number",
    "float_parsing": "a number",
    "tuple_type": "a list",
}
"""Problems of a value of the wrong kind, and the kind meant; a literal's own words name it."""


def sentences(
    kind: type[BaseModel], problems: Sequence[ErrorDetails], whole: str = "the recipe"
) -> list[str]:
    """One sentence a problem, for a recipe of `kind`, or a table of one that is called `whole`."""
    return [_sentence(kind, problem, whole) for problem in _chosen(problems)]


def _chosen(problems: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """The problems that say something: of a key with alternatives, that of the one meant.

    Pydantic tells of each alternative that it tried; a wrong kind (a text for a number) is no news
    where another alternative was of the right kind. It also calls a list too short when it has
    found all its items wrong.
    """
    by_key: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for problem in problems:
        by_key.setdefault(tuple(_place(problem)[:2]), []).append(problem)
    chosen: list[ErrorDetails] = []
    for group in by_key.values():
        alternatives = any(_is_union_branch(part) for problem in group for part in problem["loc"])
        if not alternatives:
            chosen += [p for p in group if p["type"] != "too_short" or len(group) == 1]
        else:
            right_kind = [p for p in group if p["type"] not in KINDS]
            chosen.append(right_kind[-1] if right_kind else _none_fits(group))
    return chosen


def _none_fits(group: list[ErrorDetails]) -> ErrorDetails:
    """One problem that names all alternatives."""
    kinds = [KINDS[p["type"]] or p["msg"].partition(" should be ")[2] for p in group]
    return ErrorDetails(
        type="no_alternative",
        loc=tuple(_place(group[0])),
        msg="Input should be " + ", or ".join(dict.fromkeys(kinds)),
        input=group[0]["input"],
    )


def _place(problem: ErrorDetails) -> list[str | int]:
    return [part for part in problem["loc"] if not _is_union_branch(part)]


def _sentence(kind: type[BaseModel], problem: ErrorDetails, whole: str) -> str:
    place, given = _place(problem), problem["input"]
    where = _spell(kind, place) if place else whole
    if problem["type"] == "extra_forbidden":
        return f"{where} is not a known key. {_nearest(str(place[-1]), _fields_at(kind, place))}"
    if problem["type"] == "missing":
        return f"{where} is missing."
    if problem["type"] == "value_error":
        said = problem["msg"].removeprefix("Value error, ")
        return f"{where}: {said}" + ("" if said.endswith("?") else ".")
    shown = f" (it is {given!r})" if isinstance(given, str | int | float | bool) else ""
    if problem["type"] == "tuple_type" and isinstance(given, dict):
        return f"{where} should be a list of tables: write [{_spell(kind, place)}]."
    # What it should be, in the words of TOML rather than Python.
    _, verb, rest = problem["msg"].partition("should ")
    should = SHOULD.get(problem["type"]) or (verb + rest if verb else f"is wrong: {problem['msg']}")
    if problem["type"] == "literal_error" and isinstance(given, str):
        options = re.findall(r"'([^']*)'", problem["msg"])
        close = difflib.get_close_matches(given, options, n=1, cutoff=0.6)
        shown += f". Did you mean {close[0]!r}?" if close else ""
    return f"{where} {should}{shown}" + ("" if shown.endswith("?") else ".")


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(known)}."


def _is_union_branch(part: str | int) -> bool:
    """Pydantic names the alternative of a union that it tried; that is no key of the file."""
    return isinstance(part, str) and (
        "[" in part or part in ("float", "constrained-float", "tuple", "literal")
    )


def _spell(kind: type[BaseModel], place: list[str | int]) -> str:
    """("rounds", "count") as [rounds].count; ("round", 0, "steps") as [[round]] number 1, steps."""
    head, *rest = place
    if not rest:
        field = kind.model_fields.get(str(head))
        is_table = field is not None and _model_in(field.annotation) is not None
        return f"[{head}]" if is_table else str(head)
    if isinstance(rest[0], int) and head == "round":
        return ", ".join([f"[[{head}]] number {rest[0] + 1}", *map(str, rest[1:])])
    text = str(head) if isinstance(rest[0], int) else f"[{head}]"
    for part in rest:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text


def _fields_at(kind: type[BaseModel], place: list[str | int]) -> list[str]:
    """The keys that are known where the last of `place` stands."""
    model: type[BaseModel] = kind
    for part in place[:-1]:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            break
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (tuple, types.UnionType, typing.Union):
        for inner in typing.get_args(annotation):
            model = _model_in(inner)
            if model:
                return model
    return None
