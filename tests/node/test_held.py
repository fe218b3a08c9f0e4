"""Which sectors a node holds, by what rounds have shown it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

import pytest

from prime_dht.ids import US_PER_S, Key, PeerId, kad_key, wire_key
from prime_dht.node import held as held_module
from prime_dht.node.failures import BELIEVE_AGAIN_S
from prime_dht.node.held import HeldSectors
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.location import sector_of
from prime_dht.storage.capacity import location_of
from prime_dht.sync.actions import Ending, Outcome
from prime_dht.sync.declined import MAX_DECLINED, DeclinedOp
from prime_dht.sync.messages import Refusal, Refuse
from prime_dht.testing.serving import Serving
from prime_dht.wire.kad import Reply

BITS = 9
ALL = ArcSet.full(sector_bits=BITS)
NONE = ArcSet.empty(sector_bits=BITS)
KEY = wire_key("some key")


def sectors(numbers: Iterable[int]) -> ArcSet:
    return ArcSet.of_sectors(numbers, sector_bits=BITS)


def outcome(
    *, equal: ArcSet = ALL, common: ArcSet = ALL, arc: ArcSet = ALL, held: ArcSet = NONE, stored: int = 0
) -> Outcome:
    ending = Ending.EQUAL if equal == common else Ending.PARTIAL
    return Outcome(ending=ending, common=common, equal=equal, partner_arc=arc, partner_held=held, stored=stored)


def some_keys() -> Iterator[Key]:
    return (wire_key(f"key {number}") for number in count())


def sector(key: Key) -> int:
    return sector_of(location_of(key), sector_bits=BITS)


APART = Outcome(ending=Ending.REFUSED, refusal=Refuse(Refusal.NO_COMMON_ARC))


def met(count: int) -> tuple[HeldSectors, list[PeerId]]:
    """What a node holds that knows so many servers, fewer than would make its arc smaller than everything."""
    serving = Serving()
    serving.neighbourhood.looked_up_itself(None)
    peers = serving.meet(count)
    held = HeldSectors(serving.neighbourhood, sector_bits=BITS, replication=3)
    assert held.arc == ALL
    return held, peers


async def test_alone_it_holds_its_arc_provisionally() -> None:
    held, _ = met(0)
    assert held.held == ALL
    assert held.holds(KEY)


async def test_before_it_has_joined_it_holds_nothing() -> None:
    held = HeldSectors(Serving().neighbourhood, sector_bits=BITS, replication=3)
    assert held.held == NONE
    assert not held.holds(KEY)


async def test_once_it_has_met_another_it_holds_nothing_until_a_round_has_shown_it() -> None:
    held, (peer, _) = met(2)
    assert held.held == NONE
    assert not held.holds(KEY)
    some = sectors(range(150))
    held.round_ended(peer, outcome(held=sectors(range(100, 200)), equal=some, common=some))
    assert held.held == sectors(range(100, 150))


async def test_to_be_equal_with_one_that_does_not_hold_a_sector_shows_nothing_while_another_is_near() -> None:
    held, (one, other) = met(2)
    held.round_ended(one, outcome())
    assert held.held == NONE
    held.round_ended(other, outcome())
    assert held.held == ALL  # among them they have all that there is


async def test_one_near_that_does_not_store_a_sector_need_not_be_equal_in_it() -> None:
    held, (one, other) = met(2)
    low, high = sectors(range(256)), sectors(range(256, 512))
    held.round_ended(one, outcome())
    held.round_ended(other, outcome(equal=low, common=low, arc=low))
    assert held.held == ALL
    held, (one, other) = met(2)
    held.round_ended(one, outcome(equal=high, common=high, arc=high))
    held.round_ended(other, outcome(equal=low, common=low, arc=low))
    assert held.held == ALL


async def test_one_that_has_no_sector_in_common_has_none_of_these_but_may_have_what_the_arc_grows_by() -> None:
    held, (one, other) = met(2)
    held.round_ended(one, outcome())
    held.round_ended(other, APART)
    assert held.arc_of(other) == NONE
    assert held.held == ALL
    serving = Serving()
    peers = serving.meet(40)
    held = HeldSectors(serving.neighbourhood, sector_bits=BITS, replication=3)
    arc = held.arc
    assert len(arc) < len(ALL)
    held.round_ended(peers[0], APART)
    assert held.arc_of(peers[0]) == ALL - arc


async def test_the_prospects_are_those_who_hold_what_is_missing_or_were_never_asked_where_nobody_does() -> None:
    held, (one, other) = met(2)
    assert held.prospects() == {one: 512, other: 512}
    held.round_ended(one, outcome())
    assert held.prospects() == {other: 512}
    held.round_ended(one, outcome(equal=ALL - sectors(range(5)), held=sectors(range(100)), stored=1))
    assert held.missing == ALL - sectors(range(5, 100))
    assert held.prospects() == {one: 5, other: 412}
    held.round_ended(other, outcome(held=ALL))
    assert held.prospects() == {}


async def test_where_a_round_was_in_vain_the_same_partner_is_no_prospect_until_another_round_brings_something() -> None:
    held, (one, other) = met(2)
    held.round_ended(one, outcome(equal=NONE, held=sectors(range(100))))
    assert held.prospects() == {other: 412}
    held.round_ended(one, outcome(equal=NONE, held=sectors(range(100)), stored=1))
    assert held.prospects() == {one: 512, other: 412}


async def test_a_sector_in_which_a_round_was_in_vain_is_not_held_for_it() -> None:
    held, (one, other) = met(2)
    held.round_ended(one, outcome(equal=ALL - sectors([7])))
    held.round_ended(other, outcome())
    assert ALL - held.held == sectors([7])


async def test_dry_rounds_and_strangers_show_nothing_and_take_nothing_away() -> None:
    held, (peer,) = met(1)
    held.round_ended(peer, outcome(held=ALL))
    assert held.held == ALL
    compared = Outcome(ending=Ending.COMPARED, common=ALL, equal=NONE, partner_arc=ALL, partner_held=NONE)
    held.round_ended(peer, compared)
    held.round_ended(PeerId(b"a stranger"), outcome(equal=NONE))
    assert held.held == ALL
    held, _ = met(1)
    held.round_ended(PeerId(b"a stranger"), outcome(held=ALL))
    assert held.held == NONE


async def test_where_one_is_known_to_hold_a_sector_only_such_a_one_can_show_it() -> None:
    held, (one, other) = met(2)
    held.round_ended(one, outcome(equal=NONE, held=ALL))
    held.round_ended(other, outcome())
    assert held.held == NONE
    held.round_ended(one, outcome(held=ALL))
    assert held.held == ALL


async def test_a_round_that_could_not_settle_a_sector_takes_it_away() -> None:
    held, (peer,) = met(1)
    held.round_ended(peer, outcome(held=ALL))
    held.round_ended(peer, outcome(equal=ALL - sectors([7]), held=ALL))
    assert ALL - held.held == sectors([7])


async def test_a_round_that_failed_changes_nothing() -> None:
    held, (peer,) = met(1)
    held.round_ended(peer, outcome(held=ALL))
    held.round_ended(peer, Outcome(ending=Ending.FAILED, common=ALL, partner_held=ALL))
    assert held.held == ALL


async def test_an_op_declined_for_which_there_is_no_room_unholds_its_sector_until_others_retire() -> None:
    held, (peer,) = met(1)
    ops = [
        DeclinedOp(op_id=number.to_bytes(32, "big"), location=5 << 23, created_at_us=0, retain_until_us=number % 2)
        for number in range(MAX_DECLINED + 1)
    ]
    for op in ops[:-1]:
        held.decline(op)
    held.round_ended(peer, outcome(held=ALL))
    assert held.held == ALL
    held.decline(ops[-1])
    held.round_ended(peer, outcome(held=ALL))
    assert ALL - held.held == sectors([5])
    held.retire(1)
    assert len(held.declined) == MAX_DECLINED // 2
    assert held.decline(ops[-1])
    held.round_ended(peer, outcome(held=ALL))
    assert held.held == ALL


async def test_of_too_many_partners_the_one_whose_round_is_longest_ago_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_module, "PARTNERS_NOTED", 3)
    serving = Serving()
    first, *others, last = serving.meet(4)
    held = HeldSectors(serving.neighbourhood, sector_bits=BITS, replication=3)
    for peer in (first, *others, first, last):
        held.round_ended(peer, outcome())
    assert [held.arc_of(peer) for peer in (first, *others, last)] == [ALL, None, ALL, ALL]


async def test_an_op_put_off_unholds_its_sector_until_the_next_tick_even_if_it_was_stored_meanwhile() -> None:
    held, (peer,) = met(1)
    op = DeclinedOp(op_id=bytes(32), location=5 << 23, created_at_us=0, retain_until_us=1000)
    held.round_ended(peer, outcome(held=ALL))
    assert held.put_off(op, now_us=150)
    assert ALL - held.held == sectors([5])
    held.declined.discard(op.op_id)
    held.retire(100)
    held.round_ended(peer, outcome(held=ALL))
    assert held.held == ALL
    held.put_off(op, now_us=150)
    held.retire(100)
    held.round_ended(peer, outcome(held=ALL))
    assert ALL - held.held == sectors([5])
    held.declined.discard(op.op_id)
    held.retire(200)
    held.round_ended(peer, outcome(held=ALL))
    assert held.held == ALL


async def test_what_was_put_off_after_the_clock_was_set_back_is_waited_for_until_the_next_tick_all_the_same() -> None:
    held, (peer,) = met(1)
    op = DeclinedOp(op_id=bytes(32), location=5 << 23, created_at_us=0, retain_until_us=1000)
    held.retire(1_000_000)
    held.retire(100)
    held.put_off(op, now_us=150)
    held.declined.discard(op.op_id)
    held.round_ended(peer, outcome(held=ALL))
    assert ALL - held.held == sectors([5])
    held.retire(200)
    held.round_ended(peer, outcome(held=ALL))
    assert held.held == ALL
    assert not held.missing


async def test_what_was_put_off_before_the_clock_was_set_back_is_asked_for_again_before_its_sector_is_held() -> None:
    held, (peer,) = met(1)
    op = DeclinedOp(op_id=bytes(32), location=5 << 23, created_at_us=0, retain_until_us=1000)
    held.retire(1_000_000)
    held.put_off(op, now_us=1_000_050)
    held.retire(100)
    assert op.op_id not in held.declined, "two nodes are not equal because it is left out"
    held.round_ended(peer, outcome(held=ALL))
    assert held.held == ALL


async def test_a_sector_that_leaves_the_arc_is_held_no_more_when_it_comes_back() -> None:
    serving = Serving()
    serving.neighbourhood.looked_up_itself(None)
    peers = serving.meet(40)
    held = HeldSectors(serving.neighbourhood, sector_bits=BITS, replication=3)
    narrow = held.arc
    assert len(narrow) < len(ALL)
    far = [peer for peer in peers if kad_key(peer) >> 255 != serving.neighbourhood.local >> 255]
    near = next(peer for peer in peers if peer not in far)
    held.round_ended(near, outcome(held=ALL))
    assert held.held == narrow
    for peer in far:
        serving.neighbourhood.failed(peer, "it is gone")
    held.round_ended(near, outcome(held=ALL))
    assert held.held == held.arc == ALL
    for peer in far:
        serving.neighbourhood.answered(peer, Reply(replicates=True))
    for peer in far:
        serving.neighbourhood.failed(peer, "it is gone again")
    assert held.arc == ALL
    assert held.held == narrow


async def test_it_speaks_for_a_key_only_while_it_is_among_the_closest_it_knows() -> None:
    serving = Serving()
    peers = serving.meet(12)
    held = HeldSectors(serving.neighbourhood, sector_bits=BITS, replication=3)
    for peer in peers:
        held.round_ended(peer, outcome(held=ALL))
    local = serving.neighbourhood.local
    spoken_for = 0
    for number in range(200):
        key = wire_key(f"key {number}")
        closer = sum(kad_key(peer) ^ kad_key(key) < local ^ kad_key(key) for peer in peers)
        is_held = sector_of(location_of(key), sector_bits=BITS) in held.held
        assert held.holds(key) == (is_held and closer < 3)
        assert held.holds(key, names_some=True) == is_held, "a reader asks the closest first"
        spoken_for += held.holds(key)
    assert 0 < spoken_for < 200


async def test_of_a_sector_whose_store_may_have_lost_something_nobody_is_known_any_more_to_have_the_same() -> None:
    held, (one, other) = met(2)
    held.round_ended(one, outcome())
    held.round_ended(other, outcome())
    assert held.held == ALL
    held.unsure([3, 5])
    assert held.missing == sectors([3, 5])
    assert held.prospects() == {one: 2, other: 2}
    held.round_ended(one, outcome())
    assert held.missing == sectors([3, 5])
    held.round_ended(other, outcome())
    assert held.held == ALL


async def test_whoever_takes_the_place_of_one_that_is_gone_does_not_speak_for_what_was_just_put_there() -> None:
    serving = Serving()
    peers = serving.meet(12)
    held = HeldSectors(serving.neighbourhood, sector_bits=BITS, replication=3)
    for peer in peers:
        held.round_ended(peer, outcome(held=ALL))
    local = serving.neighbourhood.local

    def nearer(key: Key) -> list[PeerId]:
        return [peer for peer in peers if kad_key(peer) ^ kad_key(key) < local ^ kad_key(key)]

    def is_held(key: Key) -> bool:
        return sector_of(location_of(key), sector_bits=BITS) in held.held

    keys = (wire_key(f"key {number}") for number in range(200))
    key = next(key for key in keys if len(nearer(key)) == 3 and is_held(key))
    gone = nearer(key)[0]
    assert not held.holds(key)
    serving.neighbourhood.failed(gone, "killed")
    assert serving.neighbourhood.own_contact() in serving.neighbourhood.nearest_replicas(kad_key(key), 3)
    assert not held.holds(key)
    assert not held.holds(key, names_some=True), "what it has may be what was put since alone"
    serving.clock.time_us += int(BELIEVE_AGAIN_S * US_PER_S)
    assert held.holds(key)


async def test_who_loses_the_last_that_it_knew_has_what_rounds_have_shown_until_it_has_joined_again() -> None:
    serving = Serving()
    serving.neighbourhood.looked_up_itself(None)
    (peer,) = serving.meet(1)
    held = HeldSectors(serving.neighbourhood, sector_bits=BITS, replication=3)
    some = sectors(range(100))
    held.round_ended(peer, outcome(held=ALL, equal=some, common=ALL))
    serving.neighbourhood.failed(peer, "killed")
    serving.clock.time_us += 10 * int(BELIEVE_AGAIN_S * US_PER_S)
    assert held.held == some
    assert not held.holds(next(key for key in some_keys() if sector(key) not in some))
    assert held.holds(next(key for key in some_keys() if sector(key) in some))
    serving.neighbourhood.looked_up_itself(None)
    assert held.held == ALL


async def test_who_is_first_again_when_the_last_has_just_failed_it_waits_until_others_have_found_out() -> None:
    serving = Serving()
    (peer,) = serving.meet(1)
    held = HeldSectors(serving.neighbourhood, sector_bits=BITS, replication=3)
    serving.neighbourhood.failed(peer, "killed")
    serving.neighbourhood.looked_up_itself(None)
    assert not held.holds(KEY)
    serving.clock.time_us += int(BELIEVE_AGAIN_S * US_PER_S)
    assert held.holds(KEY)
