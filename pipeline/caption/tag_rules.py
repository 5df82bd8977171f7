"""A recipe's [[caption.rule]] tables, compiled for one dataset's vocabulary; each is pure.

Patterns are matched against the vocabulary once; what is left to do for a picture is to look its
tags up in sets. Rules run in order, again and again until nothing changes, so that a caption put
through them once more stays as it is.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pipeline.caption.spelling import spell
from pipeline.errors import RequestError
from pipeline.recipe.caption import Rule

PASSES = 20
"""More than any sensible set of rules needs to settle."""

Slot = Literal["added", "count", "character", "series", "rest"]


class Element(NamedTuple):
    """One thing that a caption says."""

    tag: str
    """As the source spells it, or the text that a rule added."""
    slot: Slot
    text: str
    same: str
    """As `Spelling.same`, of the text."""


Elements = tuple[Element, ...]
Told = Callable[[Element, str, str], None]
"""Told(element, what happened to it, why): "dropped", "collapsed", "folded", or the new text."""


@dataclass(frozen=True)
class TagRule:
    """One rule, ready for use. `names`: what it looks for, as `Spelling.same`."""

    rule: Rule
    verb: str
    names: frozenset[str]
    renamed: dict[str, str]
    """`Spelling.same` to the new text."""
    order: dict[str, int]
    """Of `collapse`."""
    into: str
    """As `Spelling.same`."""
    added: Elements

    def apply(self, elements: Elements, names: set[str], told: Told) -> Elements:
        """What is left of `elements`, whose `same` are `names`; what became of the others is told.

        The same object where the rule has nothing to do.
        """
        verb, reason = self.verb, self.rule.reason
        if verb == "add":
            return self._added(elements, told)
        if self.names.isdisjoint(names):
            return elements
        here = self.names & names
        if verb == "rename":
            return tuple(
                [
                    self._renamed(element, told) if element.same in here else element
                    for element in elements
                ]
            )
        if verb == "fold" and self.into not in names:
            return elements
        if verb == "collapse":
            here -= {min(here, key=self.order.__getitem__)}
        kept = []
        for element in elements:
            if element.same in here:
                told(element, _PAST[verb], reason or self._says())
            else:
                kept.append(element)
        return tuple(kept)

    def _added(self, elements: Elements, told: Told) -> Elements:
        if elements[: len(self.added)] == self.added:
            return elements
        for element in self.added:
            if element not in elements:
                told(element, "added", self.rule.reason)
        said = {element.same for element in self.added}
        return (*self.added, *[element for element in elements if element.same not in said])

    def _renamed(self, element: Element, told: Told) -> Element:
        text = self.renamed.get(element.same)
        if text is None or text == element.text:
            return element
        told(element, text, self.rule.reason)
        return Element(element.tag, element.slot, text, spell(text).same)

    def _says(self) -> str:
        if self.rule.into is not None:
            return f"stands in {self.rule.into}"
        return f"one of {', '.join(self.rule.collapse)}" if self.rule.collapse else "by a rule"


_PAST = {"drop": "dropped", "collapse": "collapsed", "fold": "folded"}


def compile_tag_rules(rules: Sequence[Rule], vocabulary: Iterable[str]) -> tuple[TagRule, ...]:
    """`rules` for a dataset whose tags are `vocabulary`, as its source spells them."""
    known = {spell(tag).same for tag in vocabulary}
    known |= {spell(text).same for rule in rules for text in (*rule.rename.values(), *rule.add)}
    return tuple(_compiled(rule, known) for rule in rules)


def _compiled(rule: Rule, known: set[str]) -> TagRule:
    renamed = {spell(tag).same: spell(text).text for tag, text in rule.rename.items()}
    order = {spell(tag).same: place for place, tag in enumerate(rule.collapse)}
    into = spell(rule.into).same if rule.into is not None else ""
    patterns = matching((*rule.drop, *rule.fold), known) - ({into} if into else set())
    names = frozenset(patterns | renamed.keys() | order.keys())
    added = tuple(Element(text, "added", spell(text).text, spell(text).same) for text in rule.add)
    return TagRule(rule, rule.verb, names, renamed, order, into, added)


def matching(patterns: Iterable[str], known: Iterable[str]) -> set[str]:
    """Which of `known` (as `Spelling.same`) the patterns name; `*` stands for any letters."""
    plain, wild = set(), []
    for pattern in patterns:
        same = spell(pattern).same
        if "*" in same:
            wild.append(".*".join(re.escape(part) for part in same.split("*")))
        else:
            plain.add(same)
    if not wild:
        return plain
    expression = re.compile("|".join(wild))
    return plain | {name for name in known if expression.fullmatch(name)}


def settle(elements: Elements, rules: Sequence[TagRule], told: Told) -> Elements:
    """`elements` put through all rules until they stay as they are.

    Raises:
        RequestError: they never do.
    """
    names = {element.same for element in elements}
    for _ in range(PASSES):
        before = elements
        for rule in rules:
            after = rule.apply(elements, names, told)
            if after is not elements:
                names = {element.same for element in after}
                # A rename may meet a tag that is there already.
                elements = after if len(names) == len(after) else _once(after)
        if elements is before or elements == before:
            return elements
    raise RequestError(
        f"The rules of [caption] never come to rest: {elements[0].text!r} and others change at "
        "every pass. Take out the rename or add that undoes another rule."
    )


def _once(elements: Elements) -> Elements:
    """Without what is said twice; the first stands."""
    kept: dict[str, Element] = {}
    for element in elements:
        kept.setdefault(element.same, element)
    return tuple(kept.values())
