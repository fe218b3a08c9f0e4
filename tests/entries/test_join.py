"""The join of states, what a slot says, and what readers choose."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.entries.codec import inline
from prime_dht.entries.entry import Content, Entry, EntryHeader, Slot, Tombstone
from prime_dht.entries.join import Selection, join, standing, state_of
from prime_dht.ids import Key, OpId, PeerId, TimestampUs

ALICE, BOB, CAROL = PeerId(b"alice"), PeerId(b"bob"), PeerId(b"carol")
KEY = Key(b"/prime/gradient:7")
VALUE = inline(b"v")


def entry(
    publisher: PeerId,
    created: int,
    *,
    subkey: bytes = b"",
    expires: int = 100,
    retain: int = 100,
    content: Content = VALUE,
    op: int = 0,
) -> Entry:
    header = EntryHeader(
        network_id="testnet",
        key=KEY,
        subkey=subkey,
        created_at_us=TimestampUs(created),
        expires_at_us=TimestampUs(expires),
        retain_until_us=TimestampUs(retain),
        content=content,
    )
    value = b"v" if content == VALUE else None
    op_id = OpId(bytes((op, content == VALUE)))  # one op is one statement
    return Entry(header=header, publisher=publisher, op_id=op_id, envelope=b"", value=value)


def bare(it: Entry) -> Entry:
    return replace(it, value=None)


entries = st.builds(
    entry,
    st.sampled_from([ALICE, BOB]),
    st.integers(0, 3),
    subkey=st.sampled_from([b"", b"s"]),
    content=st.sampled_from([VALUE, Tombstone()]),
    op=st.integers(0, 2),
)
copies = st.builds(
    lambda it, dropped, signature: replace(it, value=None if dropped else it.value, envelope=signature),
    entries,
    st.booleans(),
    st.sampled_from([b"signature", b"another signature"]),
)
states = st.lists(copies, max_size=8).map(state_of)


@given(states)
@settings(derandomize=True, deadline=None)
def test_joining_a_state_with_itself_changes_nothing(a: dict[Slot, Entry]) -> None:
    assert join(a, a) == a
    assert join(a, {}) == a


@given(states, states)
@settings(derandomize=True, deadline=None)
def test_the_join_is_commutative(a: dict[Slot, Entry], b: dict[Slot, Entry]) -> None:
    assert join(a, b) == join(b, a)


@given(states, states, states)
@settings(derandomize=True, deadline=None)
def test_the_join_is_associative(a: dict[Slot, Entry], b: dict[Slot, Entry], c: dict[Slot, Entry]) -> None:
    assert join(join(a, b), c) == join(a, join(b, c))


@given(st.lists(copies, max_size=8).flatmap(lambda them: st.tuples(st.just(them), st.permutations(them))))
@settings(derandomize=True, deadline=None)
def test_the_order_in_which_entries_arrive_does_not_matter(orders: tuple[list[Entry], list[Entry]]) -> None:
    assert state_of(orders[0]) == state_of(orders[1])


def test_the_newer_entry_stands() -> None:
    old, new = entry(ALICE, 1, op=9), entry(ALICE, 2, op=1)
    assert standing(old, new) == standing(new, old) == new


def test_a_tie_in_time_goes_to_the_greater_op_id() -> None:
    low, high = entry(ALICE, 1, op=1), entry(ALICE, 1, op=2)
    assert standing(low, high) == standing(high, low) == high


def test_of_one_entry_the_copy_with_its_value_stands() -> None:
    whole = entry(ALICE, 1)
    assert standing(whole, bare(whole)) == standing(bare(whole), whole) == whole


def test_publishers_and_subkeys_do_not_overwrite_each_other() -> None:
    written = [entry(ALICE, 1), entry(BOB, 2), entry(ALICE, 3, subkey=b"s")]
    assert list(state_of(written).values()) == written


ALICES = entry(ALICE, 1)
ALICES_LAYER = entry(ALICE, 2, subkey=b"layer")
BOBS = entry(BOB, 3)
CAROLS = entry(CAROL, 4, expires=50)
STATE = state_of([CAROLS, BOBS, ALICES_LAYER, ALICES])


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (Selection(), (CAROLS,)),
        (Selection(publishers=frozenset({ALICE})), (ALICES_LAYER,)),
        (Selection(publishers=frozenset({ALICE, BOB})), (BOBS,)),
        (Selection(subkeys=frozenset({b"layer"})), (ALICES_LAYER,)),
        (Selection(newest=False), (ALICES, ALICES_LAYER, BOBS, CAROLS)),
        (Selection(newest=False, subkeys=frozenset({b""})), (ALICES, BOBS, CAROLS)),
        (Selection(newest=False, publishers=frozenset({ALICE}), subkeys=frozenset({b""})), (ALICES,)),
        (Selection(publishers=frozenset()), ()),
        (Selection(subkeys=frozenset({b"unknown"})), ()),
    ],
    ids=[
        "newest of all",
        "one publisher",
        "a trusted set",
        "one subkey",
        "every slot",
        "every slot of a subkey",
        "one slot",
        "nobody",
        "nothing",
    ],
)
def test_a_reader_chooses(selection: Selection, chosen: tuple[Entry, ...]) -> None:
    assert selection.choose(STATE, 10) == chosen


def test_an_expired_entry_leaves_the_newest_place_to_the_next() -> None:
    assert Selection().choose(STATE, 49) == (CAROLS,)
    assert Selection().choose(STATE, 50) == (BOBS,)


def test_a_tombstone_empties_its_own_slot_and_hides_nobody_elses() -> None:
    state = join(STATE, state_of([entry(CAROL, 5, content=Tombstone())]))
    assert Selection().choose(state, 10) == (BOBS,)
    assert Selection(publishers=frozenset({CAROL})).choose(state, 10) == ()
