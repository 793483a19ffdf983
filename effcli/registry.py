"""A table from the name of a part to the place where it lives, loaded only when used."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from effcli.errors import InputError

ENTRY_POINTS = "effcli.parts"


def suggestion(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """A hint for an unknown name: the nearest known one, else all of them."""
    close = get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def resolve_place(place: str) -> Any:
    """Import what is at `module:attribute`."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


class Registry(Mapping[str, str]):
    """The parts of one kind, each named and placed as `module:attribute`.

    Another package adds a part with an entry point in the group `effcli.parts`
    whose name is `kind.name`, for example `model.mamba = "my_package:Mamba"`.
    """

    def __init__(self, kind: str, places: Mapping[str, str]) -> None:
        self.kind = kind
        self._own = dict(places)

    @cached_property
    def _places(self) -> dict[str, str]:
        prefix = f"{self.kind}."
        guests = {
            point.name.removeprefix(prefix): point.value
            for point in entry_points(group=ENTRY_POINTS)
            if point.name.startswith(prefix)
        }
        return {**guests, **self._own}  # a guest cannot silently replace a part of the house

    def __getitem__(self, name: str) -> str:
        try:
            return self._places[name]
        except KeyError:
            message = f"there is no {self.kind} called {name!r}"
            raise InputError(message, suggestion(name, self._places)) from None

    def add(self, name: str, place: str) -> None:
        """Enter a part at run time, as a script or a notebook does; names are given once."""
        if name in self._places:
            raise InputError(
                f"there is a {self.kind} called {name!r} already", "choose another name"
            )
        self._own[name] = self._places[name] = place

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def load(self, name: str) -> Any:
        """Import and return the part called `name`."""
        return resolve_place(self[name])
