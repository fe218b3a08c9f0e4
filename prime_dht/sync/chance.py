"""Chance, which comes from outside."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Rng(Protocol):
    """What is used of a :class:`random.Random`. In a node it is one whose numbers nobody can foresee."""

    def randrange(self, stop: int, /) -> int: ...

    def randint(self, a: int, b: int) -> int: ...

    def randbytes(self, n: int) -> bytes: ...

    def choice(self, seq: Sequence[T], /) -> T: ...

    def shuffle(self, x: MutableSequence[T], /) -> None: ...
