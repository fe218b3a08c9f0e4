"""A node's memory of what it read lately, for gets that need not be the latest.

Bounded in bytes, dropping what was used longest ago; an answer is used for ``ttl_s`` and never beyond the entry's own
expiry. What this node writes itself, or stores as a replica, drops what is remembered of that key; and an answer that
was on its way meanwhile, which may be older than the write, is not remembered either. What asking again has shown to be
over is forgotten, and an older answer that comes late takes no newer one's place: nobody goes back to what was before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from prime_dht.ids import Key, PeerId
from prime_dht.node.results import Found

OVERHEAD_BYTES = 512
"""Counted for each answer on top of what varies in size."""

PUBLISHER_BYTES = 100
"""Counted for each publisher that a question names."""


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked; only the very same question gets the remembered answer."""

    key: Key
    subkey: bytes
    publishers: frozenset[PeerId] | None


@dataclass(frozen=True, slots=True)
class _Answer:
    found: Found
    until_s: float
    size: int


class ReadCache:
    """See the module. Absence is never remembered.

    Args:
        ttl_s: seconds that an answer may be used; 0 remembers nothing.
        max_bytes: upper bound on what is remembered.

    Attributes:
        hits: gets that were answered from here.
    """

    def __init__(self, *, ttl_s: float, max_bytes: int) -> None:
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._answers: OrderedDict[Question, _Answer] = OrderedDict()
        self._of_key: dict[Key, set[Question]] = {}
        self._reading: dict[Key, int] = {}
        self._written: set[Key] = set()
        self._bytes = 0
        self.hits = 0

    def get(self, question: Question, *, now_us: int, now_s: float) -> Found | None:
        """A remembered answer that may still be used."""
        answer = self._known(question)
        if answer is None:
            return None
        if now_s >= answer.until_s or now_us >= answer.found.expires_at_us:
            self._forget(question)
            return None
        self._answers.move_to_end(question)
        self.hits += 1
        return answer.found

    @contextmanager
    def reading(self, question: Question) -> Iterator[Callable[[Found | None, float | None], None]]:
        """While replicas are asked a question: call what this gives with the answer, to take note of it, and ``now_s``.

        Without ``now_s`` others are not given the answer.
        """
        key = question.key
        self._reading[key] = self._reading.get(key, 0) + 1
        at_start = self._known(question)

        def note(found: Found | None, now_s: float | None) -> None:
            if key in self._written:
                return
            if (before := self._known(question)) is not None:
                if found is not None:
                    known, told = _version(before.found), _version(found)
                    # Older than what was known all along: that is over, deleted, and this is another publisher's.
                    if (told == known and now_s is None) or (told < known and before is not at_start):
                        return
                self._forget(question)
            if found is not None and now_s is not None:
                self._put(question, found, now_s)

        try:
            yield note
        finally:
            self._reading[key] -= 1
            if not self._reading[key]:
                del self._reading[key]
                self._written.discard(key)

    def drop(self, key: Key) -> None:
        """The key was written: forget every answer about it, those on their way included."""
        if key in self._reading:
            self._written.add(key)
        for question in tuple(self._of_key.get(key, ())):
            self._forget(question)

    def _known(self, question: Question) -> _Answer | None:
        return self._answers.get(question) if question.key in self._of_key else None  # a question takes long to hash

    def _put(self, question: Question, found: Found, now_s: float) -> None:
        size = (
            OVERHEAD_BYTES
            + len(question.key)
            + len(question.subkey)
            + PUBLISHER_BYTES * len(question.publishers or ())
            + len(found.value)
            + len(found.envelope)
            + sum(len(name) + len(text) for name, text in found.metadata.items())
        )
        if self._ttl_s <= 0 or size > self._max_bytes:
            return
        self._answers[question] = _Answer(replace(found, answered=0), now_s + self._ttl_s, size)
        self._of_key.setdefault(question.key, set()).add(question)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._answers)))

    def _forget(self, question: Question) -> None:
        answer = self._answers.pop(question, None)
        if answer is None:
            return
        self._bytes -= answer.size
        questions = self._of_key[question.key]
        questions.discard(question)
        if not questions:
            del self._of_key[question.key]


def _version(found: Found) -> tuple[int, bytes]:
    return found.created_at_us, found.op_id
