"""Batches: the parts in which many entries go to one replica."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

BATCH_ENTRIES = 64
"""Entries in one batched PUT_VALUE; verifying them takes the replica some 5 ms, during which it does nothing else."""

BATCH_BYTES = 1 << 20
"""Of entries in one; an entry beyond that has a batch of its own."""


class Sized(Protocol):
    """An entry, or what stands for one."""

    @property
    def size_bytes(self) -> int: ...


S = TypeVar("S", bound=Sized)


def batches(sized: Iterable[S]) -> Iterator[list[S]]:
    """All of them, in order, in batches within :data:`BATCH_ENTRIES` and :data:`BATCH_BYTES`."""
    batch: list[S] = []
    size_bytes = 0
    for one in sized:
        if batch and (len(batch) == BATCH_ENTRIES or size_bytes + one.size_bytes > BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(one)
        size_bytes += one.size_bytes
    if batch:
        yield batch
