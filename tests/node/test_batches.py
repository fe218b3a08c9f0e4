"""Batches of entries for one replica."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.node.batches import BATCH_BYTES, BATCH_ENTRIES, batches


@dataclass(frozen=True)
class Sized:
    """Stands for an entry."""

    size_bytes: int


def test_a_batch_is_full_with_so_many_entries_however_small() -> None:
    assert [len(batch) for batch in batches([Sized(1)] * (2 * BATCH_ENTRIES + 1))] == [BATCH_ENTRIES, BATCH_ENTRIES, 1]


SIZES = st.integers(1, 2000) | st.integers(BATCH_BYTES // 4, BATCH_BYTES + 1)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.builds(Sized, SIZES), max_size=200))
def test_batches_hold_all_in_order_and_are_as_full_as_their_bounds_allow(sized: list[Sized]) -> None:
    made = list(batches(sized))
    assert [one for batch in made for one in batch] == sized
    for batch in made:
        assert 1 <= len(batch) <= BATCH_ENTRIES
        assert len(batch) == 1 or sum(one.size_bytes for one in batch) <= BATCH_BYTES
    for batch, after in pairwise(made):
        next_bytes = sum(one.size_bytes for one in batch) + after[0].size_bytes
        assert len(batch) == BATCH_ENTRIES or next_bytes > BATCH_BYTES
