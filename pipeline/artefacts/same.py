"""Things that are the same as others, by pairs: union and find."""

from typing import Generic, TypeVar

Thing = TypeVar("Thing", int, str, tuple[int, str])


class Same(Generic[Thing]):
    """Things that were said to be the same as others, each pair by itself."""

    def __init__(self) -> None:
        self._toward: dict[Thing, Thing] = {}

    def first(self, thing: Thing) -> Thing:
        """The least of all that are the same as `thing`."""
        toward = self._toward
        while (there := toward.get(thing, thing)) != thing:
            toward[thing] = toward.get(there, there)  # Halves the way for whoever comes next.
            thing = there
        return thing

    def join(self, one: Thing, other: Thing) -> None:
        least, most = sorted((self.first(one), self.first(other)))
        if least != most:
            self._toward[most] = least

    def doubles(self) -> dict[Thing, Thing]:
        """Each thing that is not the first of its kind, with the one that is."""
        return {thing: self.first(thing) for thing in self._toward}
