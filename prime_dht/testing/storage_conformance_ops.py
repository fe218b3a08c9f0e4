"""What a storage backend has to do for others to know all it holds: tell its ops, and list everything in order.

Part of :class:`prime_dht.testing.storage_conformance.StorageConformance`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prime_dht.entries.entry import Entry, Slot
from prime_dht.entries.lifetime import is_op
from prime_dht.ids import Key, OpId, PeerId, TimestampUs
from prime_dht.storage.base import (
    MAX_STEP_BACK_US,
    Expired,
    Gone,
    Op,
    OwnSlot,
    ProviderRecord,
    PutOutcome,
    StorageBackend,
)
from prime_dht.storage.capacity import location_of
from prime_dht.testing.storage_samples import KEY, NOW_US, make_entry, provider, record

LONG_US = 5 * 60 * 1_000_000
"""The shortest life of an op."""

EVERYWHERE = range(1 << 32)
ALWAYS = range(1 << 63)
"""To the end of the last slice."""


def make_op(key: Key = KEY, *, created_at_us: int = 100, subkey: bytes = b"", value: bytes | None = b"value") -> Entry:
    return make_entry(value, key=key, subkey=subkey, created_at_us=created_at_us, expires_at_us=created_at_us + LONG_US)


def op_of(entry: Entry) -> Op:
    return Op(entry.op_id, location_of(entry.header.key), entry.header.created_at_us)


def in_version_order(entries: Sequence[Entry]) -> list[Op]:
    return sorted(map(op_of, entries), key=lambda op: op.version)


async def all_ops(backend: StorageBackend) -> list[Op]:
    return await backend.ops(locations=EVERYWHERE, created_us=ALWAYS)


async def scanned(backend: StorageBackend, *, limit: int = 1000) -> list[Op]:
    """All ops, from arrays of at most ``limit``."""
    ops: list[Op] = []
    cursor = b""
    while True:
        page = await backend.scan_ops(after=cursor, limit=limit)
        count = len(page.locations)
        assert count <= limit
        assert (page.op_ids.shape, page.op_ids.dtype) == ((count, 32), np.dtype(np.uint8))
        assert (page.locations.shape, page.locations.dtype) == ((count,), np.dtype(np.uint32))
        assert (page.created_at_us.shape, page.created_at_us.dtype) == ((count,), np.dtype(np.int64))
        columns = zip(page.op_ids, page.locations.tolist(), page.created_at_us.tolist(), strict=True)
        ops += [Op(OpId(op_id.tobytes()), location, created_at_us) for op_id, location, created_at_us in columns]
        if not page.next_cursor:
            return ops
        cursor = page.next_cursor


class OpsConformance:
    """See the module."""

    async def test_only_what_is_retained_for_5_minutes_is_an_op(self, backend: StorageBackend) -> None:
        brief = make_entry(subkey=b"1", expires_at_us=100 + LONG_US - 1)
        retained = make_entry(subkey=b"2", expires_at_us=150, retain_until_us=100 + LONG_US)
        tombstone = make_op(subkey=b"3", value=None)
        await backend.put_entries([brief, retained, tombstone], now_us=NOW_US)
        assert await all_ops(backend) == in_version_order([retained, tombstone])
        assert sorted(await scanned(backend), key=lambda op: op.version) == in_version_order([retained, tombstone])
        assert (await backend.stats()).ops == 2

    async def test_ops_come_of_any_arc_and_time_slice_in_pages_of_any_size(self, backend: StorageBackend) -> None:
        entries = [
            make_op(Key(b"/prime/%d" % max(i - 40, 0)), subkey=b"%d" % i, created_at_us=100 + (7 * i) % 13)
            for i in range(60)
        ]
        await backend.put_entries(entries, now_us=NOW_US)
        places = sorted({op_of(entry).location for entry in entries})
        for locations in (
            EVERYWHERE,
            range(1 << 31),
            range(1 << 31, 1 << 32),
            range(places[3], places[15]),
            range(places[3], places[15] + 1),
            range(places[7], places[7] + 1),
            range(places[7], places[7]),
        ):
            for created_us in (ALWAYS, range(103, 109), range(103, 104), range(50), range(103, 103)):
                wanted = [
                    op
                    for op in in_version_order(entries)
                    if op.location in locations and op.created_at_us in created_us
                ]
                for limit in (1, 3, 40, 1000):
                    found = page = await backend.ops(locations=locations, created_us=created_us, limit=limit)
                    while len(page) == limit:
                        page = await backend.ops(
                            locations=locations, created_us=created_us, after=page[-1].version, limit=limit
                        )
                        found = found + page
                    assert found == wanted, (locations, created_us, limit)
                first = in_version_order(entries)[0].version
                rest = await backend.ops(locations=locations, created_us=created_us, after=first)
                assert rest == [op for op in wanted if op.version > first]

    async def test_a_scan_gives_each_op_once_whatever_the_size_of_its_pages(self, backend: StorageBackend) -> None:
        assert await scanned(backend) == []
        entries = [make_op(Key(b"/prime/%d" % (i % 8)), subkey=b"%d" % i) for i in range(20)]
        await backend.put_entries(entries, now_us=NOW_US)
        for limit in (1, 6, 10, 20, 1000):
            ops = await scanned(backend, limit=limit)
            assert sorted(ops, key=lambda op: op.version) == in_version_order(entries)

    async def test_a_scan_gives_what_stays_though_others_come_and_go(self, backend: StorageBackend) -> None:
        entries = [make_op(subkey=b"%d" % i) for i in range(20)]
        await backend.put_entries(entries, now_us=NOW_US)
        page = await backend.scan_ops(limit=10)
        first = {op_id.tobytes() for op_id in page.op_ids}
        others = [entry for entry in entries if entry.op_id not in first]
        await backend.remove_ops([OpId(page.op_ids[-1].tobytes()), others[0].op_id])
        await backend.put_entries([make_op(subkey=b"new")], now_us=NOW_US)
        rest = await backend.scan_ops(after=page.next_cursor)
        seen = [op_id.tobytes() for op_id in (*page.op_ids, *rest.op_ids)]
        assert len(seen) == len(set(seen))
        assert {entry.op_id for entry in entries} - set(seen) == {others[0].op_id}

    async def test_what_left_the_store_is_no_op_of_it(self, backend: StorageBackend) -> None:
        displaced, removed, retired = (make_op(subkey=subkey) for subkey in (b"1", b"2", b"3"))
        await backend.put_entries([displaced, removed, retired], now_us=NOW_US)
        newer = make_op(subkey=b"1", created_at_us=200)
        await backend.put_entries([newer], now_us=NOW_US)
        await backend.remove_ops([removed.op_id])
        await backend.delete_expired(now_us=200 + LONG_US, retire_before_us=101 + LONG_US)
        assert await all_ops(backend) == await scanned(backend) == [op_of(newer)]
        assert (await backend.stats()).ops == 1

    async def test_ops_are_found_by_how_their_ids_begin(self, backend: StorageBackend) -> None:
        entries = [make_op(subkey=b"%d" % i) for i in range(5)]
        brief = make_entry(subkey=b"brief")
        await backend.put_entries([*entries, brief], now_us=NOW_US)
        await backend.remove_ops([entries[0].op_id])
        prefixes = [entry.op_id[:16] for entry in (*entries[:2], brief)]
        prefixes += [entries[2].op_id[:8], entries[2].op_id[:16], entries[3].op_id[:15] + b"?", bytes(16)]
        found = await backend.find_ops(prefixes)
        assert sorted(found) == sorted(entry.op_id for entry in entries[1:3])
        assert await backend.find_ops([]) == []

    async def test_whatever_leaves_is_told_with_what_the_partition_saw_of_it(self, backend: StorageBackend) -> None:
        for make in (make_entry, make_op):
            entries = [make(subkey=b"%d" % i) for i in range(3)]
            await backend.put_entries(entries, now_us=NOW_US)
            seen = [op_of(entry) if is_op(entry) else None for entry in entries]
            displaced, removed, retired = (Gone(entry.op_id, op) for entry, op in zip(entries, seen, strict=True))
            newer = make(subkey=b"0", created_at_us=101)
            (result,) = await backend.put_entries([newer], now_us=NOW_US)
            assert result.displaced == displaced
            told = await backend.remove_ops([removed.op_id, newer.op_id, OpId(bytes(32))])
            assert len(told) == 2
            assert set(told) == {removed, Gone.of(newer)}
            retain_until_us = entries[2].header.retain_until_us
            expired = await backend.delete_expired(now_us=NOW_US, retire_before_us=retain_until_us + 1)
            assert expired.retired == (retired,)

    async def test_what_retired_is_refused_though_the_clock_is_set_back(self, backend: StorageBackend) -> None:
        retired, retained = make_entry(retain_until_us=1000), make_entry(subkey=b"2", retain_until_us=1001)
        await backend.put_entries([retired], now_us=NOW_US)
        await backend.delete_expired(now_us=2000, retire_before_us=1001)
        results = await backend.put_entries([retired, retained], now_us=NOW_US)
        assert [result.outcome for result in results] == [PutOutcome.REFUSED, PutOutcome.INSERTED]
        assert "retired" in results[0].reason
        await backend.delete_expired(now_us=NOW_US, retire_before_us=0)
        (still,) = await backend.put_entries([retired], now_us=NOW_US)
        assert still.outcome is PutOutcome.REFUSED

    async def test_retirement_goes_on_though_the_clock_is_set_back(self, backend: StorageBackend) -> None:
        entries = [make_entry(subkey=b"%d" % i) for i in range(4)]
        await backend.put_entries(entries, now_us=NOW_US)
        first = await backend.delete_expired(now_us=2000, retire_before_us=1001, limit=2)
        then = await backend.delete_expired(now_us=NOW_US, retire_before_us=0)
        assert sorted(gone.op_id for gone in first.retired + then.retired) == sorted(entry.op_id for entry in entries)
        assert len(first.retired) == 2

    async def test_a_clock_that_was_far_ahead_does_not_close_the_store(self, backend: StorageBackend) -> None:
        future_us = NOW_US + 2 * MAX_STEP_BACK_US
        await backend.delete_expired(now_us=future_us, retire_before_us=future_us)
        entry = make_entry()
        (result,) = await backend.put_entries([entry], now_us=NOW_US)
        assert result.outcome is PutOutcome.INSERTED
        assert (await backend.delete_expired(now_us=NOW_US, retire_before_us=0)).retired == ()
        assert (await backend.delete_expired(now_us=2000, retire_before_us=1001)).retired == (Gone.of(entry),)

    async def test_a_pass_over_the_providers_visits_each_once_in_order(self, backend: StorageBackend) -> None:
        stored = [
            provider(name, multihash=multihash, expires_at_us=150)
            for multihash in (b"\x00", b"content", b"other")
            for name in (b"a", b"b", b"b\x00", b"c")
        ]
        for each in reversed(stored):
            await backend.add_provider(each, now_us=NOW_US)
        for limit in (1, 5, 12, 1000):
            visited: list[ProviderRecord] = []
            after: tuple[bytes, PeerId] | None = None
            while page := await backend.providers(after=after, limit=limit):
                assert len(page) <= limit
                visited += page
                after = (page[-1].multihash, page[-1].provider)
            assert visited == stored

    async def test_a_pass_over_the_own_slots_visits_each_once_in_order(self, backend: StorageBackend) -> None:
        slots = [
            Slot(Key(key), PeerId(publisher), subkey)
            for key in (b"/prime/a", b"/prime/b")
            for publisher in (b"p", b"q")
            for subkey in (b"", b"\x00", b"s")
        ]
        stored = [OwnSlot(slot, TimestampUs(100), TimestampUs(900)) for slot in slots]
        await backend.put_own_slots(stored[::-1])
        for limit in (1, 5, 12, 1000):
            visited: list[OwnSlot] = []
            while page := await backend.own_slots(after=visited[-1].slot if visited else None, limit=limit):
                assert len(page) <= limit
                visited += page
            assert visited == stored

    async def test_many_own_slots_are_found_together(self, backend: StorageBackend) -> None:
        slots = [make_entry(subkey=b"%d" % number).slot for number in range(2500)]
        own = [OwnSlot(slot, TimestampUs(100 + number), TimestampUs(900)) for number, slot in enumerate(slots)]
        await backend.put_own_slots(own[::2])
        found = await backend.own_slots_of([*slots, slots[0]])
        assert found == [None if number % 2 else each for number, each in enumerate(own)] + [own[0]]
        assert await backend.own_slots_of([]) == []

    async def test_an_own_slot_is_forgotten_when_no_clock_that_was_set_back_needs_it(
        self, backend: StorageBackend
    ) -> None:
        slot = make_entry(subkey=b"\x00mine").slot
        written, again = (OwnSlot(slot, TimestampUs(at_us), TimestampUs(900)) for at_us in (100, 50))
        await backend.put_own_slots([written])
        last_us = 900 + MAX_STEP_BACK_US
        assert (await backend.delete_expired(now_us=last_us + 1000, retire_before_us=last_us)).own_slots == 0
        assert await backend.own_slot(slot) == written
        assert (await backend.delete_expired(now_us=last_us + 1000, retire_before_us=last_us + 1)).own_slots == 1
        assert (await backend.own_slot(slot), await backend.own_slots()) == (None, [])
        await backend.put_own_slots([again])
        assert await backend.own_slots() == [again]
        assert (await backend.delete_expired(now_us=last_us + 1000, retire_before_us=last_us)).own_slots == 0

    async def test_own_slots_are_forgotten_a_few_at_a_time_and_not_those_written_again(
        self, backend: StorageBackend
    ) -> None:
        slots = [make_entry(subkey=b"%d" % number).slot for number in range(7)]
        await backend.put_own_slots([OwnSlot(slot, TimestampUs(100), TimestampUs(900)) for slot in slots])
        kept = OwnSlot(slots[3], TimestampUs(200), TimestampUs(5000))
        await backend.put_own_slots([kept])
        await backend.put_record(record(b"a", expires_at_us=300), now_us=NOW_US)
        before_us = 901 + MAX_STEP_BACK_US
        removed = []
        while (
            gone := await backend.delete_expired(now_us=before_us, retire_before_us=before_us, limit=3)
        ) != Expired():
            removed.append((gone.records, gone.own_slots))
        assert removed == [(1, 2), (0, 3), (0, 1)]
        assert await backend.own_slots() == [kept]

    async def test_metadata_is_replaced(self, backend: StorageBackend) -> None:
        assert await backend.get_meta("mode") is None
        await backend.put_meta("mode", b"server")
        await backend.put_meta("mode", b"\x00")
        await backend.put_meta("other", b"")
        assert (await backend.get_meta("mode"), await backend.get_meta("other")) == (b"\x00", b"")

    async def test_the_names_of_metadata_come_in_order(self, backend: StorageBackend) -> None:
        await backend.delete_expired(now_us=NOW_US, retire_before_us=NOW_US)
        assert await backend.meta_names() == []
        for name in ("mode", "a", "z"):
            await backend.put_meta(name, b"")
        assert await backend.meta_names() == ["a", "mode", "z"]
