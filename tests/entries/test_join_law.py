"""The law that matters: expiry, tombstones and partitions in any order never bring an older entry back.

A model of a swarm under one key: replicas whose clocks differ but do not step back, writers whose clocks do, messages
that reach some replicas and not others, syncs between any two in any order. What happens when a condition of the law is
broken is shown by example.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import combinations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from prime_dht.entries.codec import inline
from prime_dht.entries.entry import Content, Entry, EntryHeader, Slot, Tombstone, Version
from prime_dht.entries.join import join, state_of
from prime_dht.entries.lifetime import as_of, is_retired
from prime_dht.entries.slot import EntryTimes, next_entry_times, tombstone_times
from prime_dht.ids import Key, OpId, PeerId, TimestampUs

UNIT_US = 10
MAX_TTL_US = 60
KEY = Key(b"/prime/x")
SLOTS = [Slot(KEY, PeerId(b"alice"), b""), Slot(KEY, PeerId(b"bob"), b"")]
REPLICAS = 3


def make_entry(slot: Slot, times: EntryTimes, content: Content) -> Entry:
    header = EntryHeader(
        network_id="testnet",
        key=slot.key,
        subkey=slot.subkey,
        created_at_us=times.created_at_us,
        expires_at_us=times.expires_at_us,
        retain_until_us=times.retain_until_us,
        content=content,
    )
    op_id = OpId(hashlib.sha256(repr((slot, header)).encode()).digest())
    value = None if isinstance(content, Tombstone) else b"v"
    return Entry(header=header, publisher=slot.publisher, op_id=op_id, envelope=b"", value=value)


@dataclass
class Replica:
    """What it holds, its clock, and the newest version that ever stood in each slot."""

    clock_us: int
    state: dict[Slot, Entry] = field(default_factory=dict)
    newest: dict[Slot, Version] = field(default_factory=dict)

    def receive(self, *entries: Entry) -> None:
        for entry in entries:
            if not is_retired(entry, self.clock_us, UNIT_US):
                self.state = join(self.state, state_of([as_of(entry, self.clock_us)]))
        for slot, entry in self.state.items():
            self.newest[slot] = max(entry.version, self.newest.get(slot, entry.version))

    def advance(self, by_us: int) -> None:
        self.clock_us += by_us
        self.state = {
            slot: as_of(entry, self.clock_us)
            for slot, entry in self.state.items()
            if not is_retired(entry, self.clock_us, UNIT_US)
        }

    def shows(self, slot: Slot) -> bool:
        entry = self.state.get(slot)
        return entry is not None and entry.is_live(self.clock_us)


class Swarm(RuleBasedStateMachine):
    """Everybody keeps the rules."""

    def __init__(self) -> None:
        super().__init__()
        self.replicas = [Replica(1_000 + 3 * number) for number in range(REPLICAS)]
        self.writer_clock_us = 1_000
        self.last: dict[Slot, EntryTimes] = {}

    def write(self, slot: Slot, ttl_us: int | None, reached: set[int]) -> None:
        previous = self.last.get(slot)
        if ttl_us is None:
            times = tombstone_times(self.writer_clock_us, previous, max_ttl_us=MAX_TTL_US)
        else:
            times = next_entry_times(self.writer_clock_us, previous, ttl_us=ttl_us, max_ttl_us=MAX_TTL_US)
        self.last[slot] = times
        entry = make_entry(slot, times, Tombstone() if ttl_us is None else inline(b"v"))
        for number in reached:
            self.replicas[number].receive(entry)

    @rule(slot=st.sampled_from(SLOTS), ttl_us=st.integers(1, MAX_TTL_US), reached=st.sets(st.integers(0, REPLICAS - 1)))
    def put(self, slot: Slot, ttl_us: int, reached: set[int]) -> None:
        self.write(slot, ttl_us, reached)

    @rule(slot=st.sampled_from(SLOTS), reached=st.sets(st.integers(0, REPLICAS - 1)))
    def delete(self, slot: Slot, reached: set[int]) -> None:
        self.write(slot, None, reached)

    @rule(giver=st.integers(0, REPLICAS - 1), taker=st.integers(0, REPLICAS - 1))
    def send(self, giver: int, taker: int) -> None:
        self.replicas[taker].receive(*self.replicas[giver].state.values())

    @rule(number=st.integers(0, REPLICAS - 1), by_us=st.integers(1, 40))
    def advance(self, number: int, by_us: int) -> None:
        self.replicas[number].advance(by_us)

    @rule(by_us=st.integers(1, 40))
    def advance_all(self, by_us: int) -> None:
        self.writer_clock_us += by_us
        for replica in self.replicas:
            replica.advance(by_us)

    @rule(by_us=st.integers(1, 40))
    def step_the_writers_clock_back(self, by_us: int) -> None:
        self.writer_clock_us = max(0, self.writer_clock_us - by_us)

    @invariant()
    def no_replica_shows_what_it_superseded(self) -> None:
        for replica in self.replicas:
            self.check_shown(replica.state, replica.clock_us, replica.newest)

    @invariant()
    def no_reader_sees_what_one_of_its_replicas_superseded(self) -> None:
        for a, b in combinations(self.replicas, 2):
            now_us = max(a.clock_us, b.clock_us)
            for replica in (a, b):
                self.check_shown(join(a.state, b.state), now_us, replica.newest)

    @staticmethod
    def check_shown(state: dict[Slot, Entry], now_us: int, newest: dict[Slot, Version]) -> None:
        for slot, version in newest.items():
            entry = state.get(slot)
            if entry is not None and entry.is_live(now_us):
                assert entry.version >= version, "an older entry has come back"

    def teardown(self) -> None:
        """Once clocks agree and everybody has sent to everybody, all hold the same."""
        now_us = max(replica.clock_us for replica in self.replicas)
        for replica in self.replicas:
            replica.advance(now_us - replica.clock_us)
        for taker in (*self.replicas, *self.replicas):
            for giver in self.replicas:
                taker.receive(*giver.state.values())
        for replica in self.replicas:
            assert replica.state == self.replicas[0].state


def test_nothing_ever_brings_an_older_entry_back() -> None:
    run_state_machine_as_test(
        Swarm, settings=settings(max_examples=300, stateful_step_count=40, derandomize=True, deadline=None)
    )


def times(created: int, expires: int, retain: int) -> EntryTimes:
    return EntryTimes(
        created_at_us=TimestampUs(created), expires_at_us=TimestampUs(expires), retain_until_us=TimestampUs(retain)
    )


@pytest.mark.parametrize(("newer_retained_until", "is_shown"), [(50, False), (25, True)])
def test_after_a_partition_a_long_lived_old_entry_stays_down_only_if_the_new_one_was_retained(
    newer_retained_until: int, is_shown: bool
) -> None:
    old = make_entry(SLOTS[0], times(10, 50, 50), inline(b"v"))
    new = make_entry(SLOTS[0], times(20, 25, newer_retained_until), inline(b"v"))
    reached, cut_off = Replica(20), Replica(20)
    reached.receive(old, new)
    cut_off.receive(old)
    for replica in (reached, cut_off):
        replica.advance(20)  # to 40: the new entry has expired, the old one has not
    reached.receive(*cut_off.state.values())
    assert reached.shows(SLOTS[0]) is is_shown


def test_a_replica_whose_clock_steps_back_behind_a_retirement_can_be_shown_an_older_entry() -> None:
    """Why the law asks for clocks that do not step back, and why a store keeps what has retired away all the same."""
    old = make_entry(SLOTS[0], times(10, 50, 50), inline(b"v"))
    new = make_entry(SLOTS[0], times(20, 50, 50), Tombstone())
    replica = Replica(20)
    replica.receive(old, new)
    replica.advance(60)  # to 80: both have retired and are forgotten
    replica.clock_us = 40
    replica.receive(old)
    assert replica.shows(SLOTS[0])
