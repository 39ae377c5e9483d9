"""Registries: the implementations of one kind by name, open to plug-ins."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from coordexp.runtime.errors import ConfigError, located

T = TypeVar("T")


class Names(Protocol):
    """What a choice in the configuration needs: a `Registry`, or a view of one."""

    kind: str

    def names(self) -> list[str]:
        """The names that may be chosen."""

    def __contains__(self, name: object) -> bool: ...


class Registry(Generic[T]):
    """Named implementations of one `kind` ("loss term", "dataset format").

    Choices in the configuration, the JSON schema and the documentation are the names registered here, so adding an
    implementation is a single decorated definition, in this package or in a plug-in (`runtime.plugins`).

    >>> SHAPES = Registry("shape")
    >>> @SHAPES.register("square")
    ... def square(side):
    ...     return side * side
    >>> SHAPES["square"](3)
    9
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds an implementation; ConfigError if `name` is taken by a different one."""

        def add(item: T) -> T:
            if name in self._items:
                raise ConfigError(located(f"a {self.kind} named {name!r} is already registered", fix="rename one"))
            self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> T:
        """The implementation called `name`; ConfigError with the closest name and the list of names otherwise."""
        if name not in self._items:
            close = difflib.get_close_matches(name, self._items, n=1, cutoff=0.5)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise ConfigError(located(f"unknown {self.kind} {name!r}{hint}", expected=self.names()))
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def names(self) -> list[str]:
        """Registered names, in order of registration."""
        return list(self._items)
