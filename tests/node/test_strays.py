"""What is decided about strays: in which regions they are, to whom they are given, which of them may be dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.entries.entry import Entry
from prime_dht.ids import Key, OpId, PeerId
from prime_dht.node.batches import BATCH_BYTES, BATCH_ENTRIES
from prime_dht.node.strays import (
    FIRST_WAIT_S,
    MAX_PASSED_OVER,
    MAX_WAIT_S,
    Gift,
    Pass,
    Turns,
    stray_regions,
)
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.location import sector_locations
from prime_dht.testing.storage_samples import make_entry

LOCAL = PeerId(b"local")
A, B, C, D = (PeerId(name) for name in (b"a", b"b", b"c", b"d"))
R = 3
BITS = 5


def entries(count: int, *, value: bytes = b"value") -> list[Entry]:
    return [make_entry(key=Key(b"/prime/%d" % number), value=value) for number in range(count)]


def all_at(batch: Sequence[Entry], *peers: PeerId) -> Mapping[Key, Sequence[PeerId]]:
    return {entry.header.key: peers for entry in batch}


def ids(batch: Sequence[Entry]) -> list[OpId]:
    return [entry.op_id for entry in batch]


def take(under_way: Pass, gifts: Sequence[Gift], *, unless: PeerId | None = None) -> None:
    """Every replica but one acknowledges all that it is given."""
    for gift in gifts:
        under_way.answered(gift, [gift.peer != unless] * len(gift.entries))


@settings(derandomize=True, deadline=None)
@given(
    ops=st.lists(st.integers(0, 2 * BATCH_ENTRIES), min_size=1 << BITS, max_size=1 << BITS),
    prefix=st.integers(0, (1 << BITS) - 1),
    length=st.integers(0, BITS),
)
def test_every_sector_with_strays_is_in_one_region_and_none_of_the_arc_is(
    ops: list[int], prefix: int, length: int
) -> None:
    arc = ArcSet.of_prefix(prefix >> (BITS - length), length, sector_bits=BITS)
    regions = list(stray_regions(ops, arc))
    for sector, held in enumerate(ops):
        first = sector_locations(sector, sector_bits=BITS).start
        covering = [region for region in regions if first in region]
        if sector in arc:
            assert covering == []
        elif held:
            assert len(covering) == 1
    for region in regions:
        held_there = [ops[s] for s in range(1 << BITS) if sector_locations(s, sector_bits=BITS).start in region]
        assert sum(held_there) <= BATCH_ENTRIES or len(held_there) == 1


def test_an_entry_is_given_to_the_r_closest_and_settled_when_all_of_them_have_acknowledged_it() -> None:
    under_way = Pass(LOCAL, R)
    batch = entries(2)
    gifts = under_way.gifts(batch, all_at(batch, A, B, C, D, LOCAL))
    assert [(gift.peer, list(gift.entries)) for gift in gifts] == [(A, batch), (B, batch), (C, batch)]
    take(under_way, gifts)
    assert under_way.settled() == ids(batch)
    assert under_way.kept == 0


def test_what_one_of_the_r_refused_stays_and_the_rest_goes() -> None:
    under_way = Pass(LOCAL, R)
    batch = entries(3)
    for gift in under_way.gifts(batch, all_at(batch, A, B, C)):
        under_way.answered(gift, [True, gift.peer != B, True])
    assert under_way.settled() == ids([batch[0], batch[2]])
    assert under_way.kept == 1


def test_what_this_node_is_one_of_the_closest_to_is_given_to_nobody_and_stays() -> None:
    under_way = Pass(LOCAL, R)
    batch = entries(1)
    assert under_way.gifts(batch, all_at(batch, A, B, LOCAL, C)) == []
    assert under_way.settled() == []
    assert under_way.kept == 1


def test_where_fewer_than_r_servers_are_known_nothing_is_dropped() -> None:
    under_way = Pass(LOCAL, R)
    batch = entries(1)
    take(under_way, under_way.gifts(batch, all_at(batch, A, B)))
    assert under_way.settled() == []
    assert under_way.kept == 1


def test_a_replica_that_took_nothing_is_passed_over_while_others_still_are_given_theirs() -> None:
    under_way = Pass(LOCAL, R)
    first, second = entries(2)
    take(under_way, under_way.gifts([first], all_at([first], A, B, C)), unless=B)
    assert under_way.settled() == []
    gifts = under_way.gifts([second], all_at([second], A, B, C))
    assert [gift.peer for gift in gifts] == [A, C]
    take(under_way, gifts)
    assert under_way.settled() == []
    assert under_way.kept == 2


def test_what_was_acknowledged_of_one_batch_says_nothing_of_the_next() -> None:
    under_way = Pass(LOCAL, R)
    batch = entries(1)
    take(under_way, under_way.gifts(batch, all_at(batch, A, B, C)))
    under_way.gifts(batch, all_at(batch, A, B, C))
    assert under_way.settled() == []


def test_a_pass_in_which_too_many_take_nothing_is_hopeless() -> None:
    under_way = Pass(LOCAL, R)
    (entry,) = batch = entries(1)
    for number in range(MAX_PASSED_OVER + 1):
        assert not under_way.is_hopeless
        under_way.gifts(batch, all_at(batch, A, B, C))
        under_way.answered(Gift(PeerId(b"%d" % number), (entry,)), [False])
    assert under_way.is_hopeless


def test_one_gift_is_no_larger_than_a_request_may_be() -> None:
    under_way = Pass(LOCAL, R)
    batch = entries(BATCH_ENTRIES, value=bytes(60_000))
    gifts = under_way.gifts(batch, all_at(batch, A, B, C))
    assert all(sum(entry.size_bytes for entry in gift.entries) <= BATCH_BYTES for gift in gifts)
    assert [entry for gift in gifts if gift.peer == A for entry in gift.entries] == batch


def test_passes_that_come_to_nothing_follow_ever_later_and_success_brings_them_back() -> None:
    turns, now_s, waits_s = Turns(), 1000.0, []
    assert turns.is_due(now_s)
    for _ in range(8):
        turns.ended(now_s, dropped=0, kept=5)
        wait_s = next(wait_s for wait_s in range(0, 10_000, 60) if turns.is_due(now_s + wait_s))
        waits_s.append(wait_s)
        now_s += wait_s
    assert waits_s == [60, 120, 240, 480, 960, 1920, MAX_WAIT_S, MAX_WAIT_S]
    turns.ended(now_s, dropped=3, kept=5)
    assert not turns.is_due(now_s + FIRST_WAIT_S - 1)
    assert turns.is_due(now_s + FIRST_WAIT_S)
    turns.ended(now_s, dropped=5, kept=0)
    assert turns.is_due(now_s)
