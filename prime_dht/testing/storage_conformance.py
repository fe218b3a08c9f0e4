"""What every storage backend has to do, as tests that any backend can run.

Subclass :class:`StorageConformance` in a test module, and give it a fixture ``backend`` that yields an empty, open one
and may close it afterwards. It runs under pytest with pytest-trio in its trio mode ::

    class TestMyBackend(StorageConformance):
        @pytest.fixture
        async def backend(self) -> AsyncIterator[StorageBackend]:
            async with MyBackend() as backend:
                yield backend

The tests say nothing about what outlives the process: that is each backend's own to show.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import permutations

import pytest
import trio
import trio.testing

from prime_dht.entries.entry import Entry, Slot
from prime_dht.errors import StorageError, ValidationError
from prime_dht.ids import Key, OpId, PeerId, TimestampUs
from prime_dht.storage.base import (
    EntryQuery,
    Gone,
    OwnSlot,
    PlainRecord,
    PutOutcome,
    PutResult,
    StorageBackend,
    StoreStats,
)
from prime_dht.testing.storage_conformance_capacity import CapacityConformance
from prime_dht.testing.storage_conformance_ops import OpsConformance
from prime_dht.testing.storage_conformance_records import RecordsConformance
from prime_dht.testing.storage_samples import (
    KEY,
    NOW_US,
    OTHER_KEY,
    bare,
    in_slot_order,
    known_peer,
    make_entry,
    provider,
    read_all,
    record,
)

INSERTED = PutResult(PutOutcome.INSERTED)
DUPLICATE = PutResult(PutOutcome.DUPLICATE)
SUPERSEDED = PutResult(PutOutcome.SUPERSEDED)


class StorageConformance(OpsConformance, CapacityConformance, RecordsConformance):
    """See the module."""

    async def test_an_entry_reads_back_as_it_was_put(self, backend: StorageBackend) -> None:
        for entry in (
            make_entry(subkey=b"worker-1"),
            make_entry(b"", subkey=b"\x00\xff"),
            make_entry(bytes(range(256))),
        ):
            assert await backend.put_entries([entry], now_us=NOW_US) == [INSERTED]
            assert await read_all(backend, EntryQuery(key=KEY, subkeys=(entry.header.subkey,))) == [entry]
            assert await backend.get_ops([entry.op_id], now_us=NOW_US) == [entry]

    async def test_what_was_never_put_is_not_there(self, backend: StorageBackend) -> None:
        await backend.put_entries([make_entry(key=OTHER_KEY)], now_us=NOW_US)
        assert await backend.put_entries([], now_us=NOW_US) == []
        assert await read_all(backend, EntryQuery(key=KEY)) == []
        assert await backend.get_ops([OpId(bytes(32))], now_us=NOW_US) == []

    async def test_a_newer_entry_displaces_the_older(self, backend: StorageBackend) -> None:
        old, new = make_entry(b"old", created_at_us=100), make_entry(b"new", created_at_us=101)
        await backend.put_entries([old], now_us=NOW_US)
        assert await backend.put_entries([new], now_us=NOW_US) == [PutResult(PutOutcome.INSERTED, Gone.of(old))]
        assert await read_all(backend, EntryQuery(key=KEY)) == [new]
        assert await backend.get_ops([old.op_id, new.op_id], now_us=NOW_US) == [new]

    async def test_an_older_entry_is_superseded(self, backend: StorageBackend) -> None:
        old, new = make_entry(b"old", created_at_us=100), make_entry(b"new", created_at_us=101)
        await backend.put_entries([new], now_us=NOW_US)
        assert await backend.put_entries([old], now_us=NOW_US) == [SUPERSEDED]
        assert await read_all(backend, EntryQuery(key=KEY)) == [new]
        assert await backend.get_ops([old.op_id], now_us=NOW_US) == []

    async def test_of_entries_of_one_time_the_greater_op_id_stands(self, backend: StorageBackend) -> None:
        lesser, greater = sorted((make_entry(b"a"), make_entry(b"b")), key=lambda entry: entry.op_id)
        assert await backend.put_entries([greater], now_us=NOW_US) == [INSERTED]
        assert await backend.put_entries([lesser], now_us=NOW_US) == [SUPERSEDED]
        await backend.remove_ops([greater.op_id])
        await backend.put_entries([lesser], now_us=NOW_US)
        assert await backend.put_entries([greater], now_us=NOW_US) == [PutResult(PutOutcome.INSERTED, Gone.of(lesser))]

    async def test_in_one_call_the_newest_stands_whatever_the_order(self, backend: StorageBackend) -> None:
        versions = [make_entry(created_at_us=time_us) for time_us in (100, 101, 102)]
        for number, order in enumerate(permutations(versions)):
            results = await backend.put_entries(order, now_us=NOW_US)
            assert await read_all(backend, EntryQuery(key=KEY)) == [versions[-1]], number
            inserted = [e.op_id for e, result in zip(order, results, strict=True) if result.outcome is INSERTED.outcome]
            displaced = [result.displaced.op_id for result in results if result.displaced is not None]
            assert set(inserted) - set(displaced) == {versions[-1].op_id}
            await backend.remove_ops(inserted)

    async def test_the_same_entry_again_is_a_duplicate(self, backend: StorageBackend) -> None:
        entry = make_entry()
        assert await backend.put_entries([entry, entry], now_us=NOW_US) == [INSERTED, DUPLICATE]
        before = await backend.stats()
        assert await backend.put_entries([entry, bare(entry)], now_us=NOW_US) == [DUPLICATE, DUPLICATE]
        assert await backend.stats() == before
        assert await read_all(backend, EntryQuery(key=KEY)) == [entry]

    async def test_a_duplicate_brings_a_value_that_is_lacking(self, backend: StorageBackend) -> None:
        entry = make_entry()
        await backend.put_entries([bare(entry)], now_us=NOW_US)
        assert await read_all(backend, EntryQuery(key=KEY)) == [bare(entry)]
        assert await backend.put_entries([entry], now_us=NOW_US) == [DUPLICATE]
        assert await read_all(backend, EntryQuery(key=KEY)) == [entry]
        assert (await backend.stats()).bytes == entry.size_bytes

    async def test_slots_of_a_key_do_not_touch_each_other(self, backend: StorageBackend) -> None:
        entries = [make_entry(writer=writer, subkey=subkey) for writer in range(3) for subkey in (b"", b"a", b"b")]
        await backend.put_entries(entries, now_us=NOW_US)
        newer = make_entry(b"newer", writer=1, subkey=b"a", created_at_us=150)
        await backend.put_entries([newer], now_us=NOW_US)
        entries[4] = newer
        assert await read_all(backend, EntryQuery(key=KEY)) == in_slot_order(entries)

    async def test_an_entry_expired_on_arrival_is_kept_as_a_bare_header(self, backend: StorageBackend) -> None:
        entry = make_entry(expires_at_us=200, retain_until_us=300)
        assert await backend.put_entries([entry], now_us=200) == [INSERTED]
        assert await backend.get_ops([entry.op_id], now_us=0) == [bare(entry)]
        assert (await backend.stats()).bytes == len(entry.envelope)
        assert await backend.put_entries([entry], now_us=200) == [DUPLICATE]
        assert await backend.get_ops([entry.op_id], now_us=0) == [bare(entry)]

    async def test_an_expired_entry_reads_as_absent_before_anything_dropped_it(self, backend: StorageBackend) -> None:
        entry = make_entry(expires_at_us=300)
        await backend.put_entries([entry], now_us=NOW_US)
        expired_too = EntryQuery(key=KEY, include_expired=True)
        assert await read_all(backend, EntryQuery(key=KEY), now_us=299) == [entry]
        assert await read_all(backend, EntryQuery(key=KEY), now_us=300) == []
        assert await read_all(backend, expired_too, now_us=299) == [entry]
        assert await read_all(backend, expired_too, now_us=300) == [bare(entry)]
        assert await backend.get_ops([entry.op_id], now_us=300) == [bare(entry)]

    async def test_an_expired_header_still_supersedes(self, backend: StorageBackend) -> None:
        brief = make_entry(b"brief", created_at_us=101, expires_at_us=150, retain_until_us=1000)
        await backend.put_entries([brief], now_us=101)
        await backend.delete_expired(now_us=NOW_US, retire_before_us=NOW_US)
        assert await backend.put_entries([make_entry(created_at_us=100)], now_us=NOW_US) == [SUPERSEDED]
        assert await read_all(backend, EntryQuery(key=KEY)) == []

    async def test_a_tombstone_is_returned_even_when_it_has_expired(self, backend: StorageBackend) -> None:
        tombstone = make_entry(None, expires_at_us=300)
        await backend.put_entries([make_entry(created_at_us=99), tombstone], now_us=NOW_US)
        for now_us in (NOW_US, 300, 10_000):
            assert await read_all(backend, EntryQuery(key=KEY), now_us=now_us) == [tombstone]

    async def test_values_are_dropped_at_expiry_while_headers_stay(self, backend: StorageBackend) -> None:
        entry, longer = make_entry(expires_at_us=300, retain_until_us=900), make_entry(subkey=b"longer")
        await backend.put_entries([entry, longer], now_us=NOW_US)
        early = await backend.delete_expired(now_us=299, retire_before_us=299)
        assert (early.retired, early.values_dropped) == ((), 0)
        expired = await backend.delete_expired(now_us=300, retire_before_us=300)
        assert (expired.retired, expired.values_dropped) == ((), 1)
        assert await backend.get_ops([entry.op_id], now_us=0) == [bare(entry)]
        assert (await backend.stats()).bytes == len(entry.envelope) + longer.size_bytes
        assert (await backend.delete_expired(now_us=300, retire_before_us=300)).values_dropped == 0

    async def test_an_entry_retires_only_before_the_tick(self, backend: StorageBackend) -> None:
        entry = make_entry(expires_at_us=300, retain_until_us=900)
        await backend.put_entries([entry], now_us=NOW_US)
        kept = await backend.delete_expired(now_us=5000, retire_before_us=900)
        assert (kept.retired, kept.values_dropped) == ((), 1)
        assert (await backend.delete_expired(now_us=5000, retire_before_us=901)).retired == (Gone.of(entry),)
        assert await backend.stats() == StoreStats(keys=0, entries=0, bytes=0, records=0, providers=0, peers=0)
        assert await read_all(backend, EntryQuery(key=KEY, include_expired=True)) == []

    async def test_an_entry_outlives_the_retirement_of_the_older_it_displaced(self, backend: StorageBackend) -> None:
        old = make_entry(created_at_us=100, expires_at_us=300)
        new = make_entry(created_at_us=101, expires_at_us=1000)
        await backend.put_entries([old, new], now_us=NOW_US)
        expired = await backend.delete_expired(now_us=500, retire_before_us=500)
        assert (expired.retired, expired.values_dropped) == ((), 0)
        assert await read_all(backend, EntryQuery(key=KEY)) == [new]

    async def test_deletion_keeps_to_its_limit_and_finishes_when_repeated(self, backend: StorageBackend) -> None:
        retiring = [make_entry(subkey=b"r%d" % i, expires_at_us=201 + i) for i in range(4)]
        expiring = [make_entry(subkey=b"e%d" % i, expires_at_us=201 + i, retain_until_us=1000) for i in range(4)]
        await backend.put_entries([*retiring, *expiring], now_us=NOW_US)
        for name in (b"a", b"b", b"c"):
            await backend.put_record(record(name, expires_at_us=300), now_us=NOW_US)
            await backend.add_provider(provider(name, expires_at_us=300), now_us=NOW_US)
        retired: list[Gone] = []
        values_dropped = records = providers = 0
        while True:
            some = await backend.delete_expired(now_us=300, retire_before_us=300, limit=3)
            retired += some.retired
            values_dropped += some.values_dropped
            records += some.records
            providers += some.providers
            touched = len(some.retired) + some.values_dropped + some.records + some.providers
            assert touched <= 3
            if not touched:
                break
        assert set(retired) == set(map(Gone.of, retiring))
        assert (values_dropped, records, providers) == (4, 3, 3)
        size_bytes = sum(len(entry.envelope) for entry in expiring)
        assert await backend.stats() == StoreStats(keys=1, entries=4, bytes=size_bytes, records=0, providers=0, peers=0)

    async def test_a_query_chooses_subkeys_and_publishers(self, backend: StorageBackend) -> None:
        entries = in_slot_order(
            [make_entry(writer=writer, subkey=subkey) for writer in range(3) for subkey in (b"", b"a", b"b")]
        )
        await backend.put_entries(entries, now_us=NOW_US)
        first, second = entries[0].publisher, entries[3].publisher
        for subkeys in ((), (b"",), (b"a", b"none"), (b"b", b"a", b"b")):
            for publishers in ((), (first,), (second, first), (PeerId(b"nobody"),)):
                query = EntryQuery(key=KEY, subkeys=subkeys, publishers=publishers)
                assert await read_all(backend, query) == [
                    entry
                    for entry in entries
                    if (not subkeys or entry.header.subkey in subkeys)
                    and (not publishers or entry.publisher in publishers)
                ]

    async def test_newest_is_over_the_chosen_slots(self, backend: StorageBackend) -> None:
        entries = [make_entry(writer=writer, created_at_us=100 + writer) for writer in range(3)]
        await backend.put_entries([entries[1], entries[2], entries[0]], now_us=NOW_US)
        assert await read_all(backend, EntryQuery(key=KEY, newest=True)) == [entries[2]]
        chosen = EntryQuery(key=KEY, newest=True, publishers=(entries[0].publisher, entries[1].publisher))
        assert await read_all(backend, chosen) == [entries[1]]
        assert await read_all(backend, replace(chosen, subkeys=(b"none",))) == []

    async def test_newest_among_entries_of_one_time_goes_by_op_id(self, backend: StorageBackend) -> None:
        entries = [make_entry(subkey=b"%d" % i) for i in range(5)]
        await backend.put_entries(entries, now_us=NOW_US)
        greatest = max(entries, key=lambda entry: entry.op_id)
        assert await read_all(backend, EntryQuery(key=KEY, newest=True)) == [greatest]

    async def test_newest_tells_of_newer_deletions_and_what_they_do_not_hide(self, backend: StorageBackend) -> None:
        older_deletion = make_entry(None, subkey=b"a", created_at_us=100)
        live = make_entry(subkey=b"b", created_at_us=101)
        older_live = make_entry(subkey=b"c", created_at_us=99)
        newer_deletion = make_entry(None, subkey=b"d", created_at_us=102)
        expired = make_entry(subkey=b"e", created_at_us=103, expires_at_us=150, retain_until_us=1000)
        await backend.put_entries([older_deletion, live, older_live, newer_deletion, expired], now_us=NOW_US)
        newest = EntryQuery(key=KEY, newest=True)
        assert await read_all(backend, newest) == [live, newer_deletion]
        assert await read_all(backend, replace(newest, include_expired=True)) == [live, newer_deletion, bare(expired)]
        assert await read_all(backend, replace(newest, max_bytes=1)) == [live, newer_deletion]
        assert await read_all(backend, replace(newest, subkeys=(b"a", b"d"))) == [older_deletion, newer_deletion]

    async def test_pages_of_every_size_give_every_slot_once_in_order(self, backend: StorageBackend) -> None:
        entries = [
            make_entry(b"x" * (7 * i), writer=writer, subkey=subkey)
            for i, (writer, subkey) in enumerate((w, s) for w in range(3) for s in (b"", b"\x00", b"a", b"a\x00", b"b"))
        ]
        await backend.put_entries(entries, now_us=NOW_US)
        total_bytes = sum(entry.size_bytes for entry in entries)
        for max_bytes in (0, 1, entries[0].size_bytes, *range(300, total_bytes, 173), total_bytes - 1, total_bytes):
            query = EntryQuery(key=KEY, max_bytes=max_bytes)
            pages = [await backend.get_entries(query, now_us=NOW_US)]
            while cursor := pages[-1].next_cursor:
                pages.append(await backend.get_entries(replace(query, cursor=cursor), now_us=NOW_US))
            assert [entry for page in pages for entry in page.entries] == in_slot_order(entries)
            assert all(
                len(page.entries) == 1 or 0 < sum(entry.size_bytes for entry in page.entries) <= max_bytes
                for page in pages
            )
            assert max_bytes < total_bytes or len(pages) == 1

    async def test_a_cursor_goes_on_where_it_was_though_slots_came_and_went(self, backend: StorageBackend) -> None:
        a, b, c, d = (make_entry(subkey=subkey) for subkey in (b"a", b"b", b"c", b"d"))
        await backend.put_entries([b, d], now_us=NOW_US)
        page = await backend.get_entries(EntryQuery(key=KEY, max_bytes=1), now_us=NOW_US)
        assert page.entries == (b,)
        await backend.put_entries([a, c], now_us=NOW_US)
        await backend.remove_ops([b.op_id])
        assert await read_all(backend, EntryQuery(key=KEY, cursor=page.next_cursor)) == [c, d]

    async def test_a_cursor_that_no_page_ended_with_is_refused(self, backend: StorageBackend) -> None:
        await backend.put_entries([make_entry()], now_us=NOW_US)
        with pytest.raises(ValidationError):
            await backend.get_entries(EntryQuery(key=KEY, cursor=b"\xff"), now_us=NOW_US)

    async def test_ops_asked_for_twice_come_once(self, backend: StorageBackend) -> None:
        entries = [make_entry(subkey=b"%d" % i) for i in range(3)]
        await backend.put_entries(entries, now_us=NOW_US)
        asked = [entries[2].op_id, OpId(bytes(32)), entries[0].op_id, entries[2].op_id]
        found = await backend.get_ops(asked, now_us=NOW_US)
        assert in_slot_order(found) == [entries[0], entries[2]]

    async def test_removed_ops_are_forgotten_and_counted_once(self, backend: StorageBackend) -> None:
        kept, gone = make_entry(), make_entry(key=OTHER_KEY)
        await backend.put_entries([kept, gone], now_us=NOW_US)
        assert await backend.remove_ops([gone.op_id, OpId(bytes(32)), gone.op_id]) == [Gone.of(gone)]
        assert await backend.keys() == [KEY]
        assert await backend.get_ops([kept.op_id, gone.op_id], now_us=NOW_US) == [kept]
        assert await backend.put_entries([gone], now_us=NOW_US) == [INSERTED]

    async def test_a_pass_over_the_keys_visits_each_once_in_order(self, backend: StorageBackend) -> None:
        keys = sorted(Key(b"/prime/%d" % i) for i in range(25))
        for key in reversed(keys):
            await backend.put_entries([make_entry(key=key), make_entry(key=key, subkey=b"2")], now_us=NOW_US)
        await backend.put_entries([make_entry(None, key=keys[3], created_at_us=150)], now_us=NOW_US)
        for limit in (1, 4, 25, 1000):
            visited: list[Key] = []
            while page := await backend.keys(after=visited[-1] if visited else None, limit=limit):
                assert len(page) <= limit
                visited += page
            assert visited == keys

    async def test_a_record_replaces_the_one_before(self, backend: StorageBackend) -> None:
        first, second = record(b"a"), replace(record(b"a", value=b"other"), publisher=PeerId(b"peer"))
        await backend.put_record(first, now_us=NOW_US)
        assert await backend.get_record(first.key, now_us=NOW_US) == first
        await backend.put_record(second, now_us=NOW_US)
        assert await backend.get_record(first.key, now_us=NOW_US) == second
        assert await backend.get_record(record(b"b").key, now_us=NOW_US) is None
        assert (await backend.stats()).records == 1

    async def test_a_record_expires_unless_it_was_refreshed(self, backend: StorageBackend) -> None:
        await backend.put_record(record(b"a", expires_at_us=300), now_us=NOW_US)
        await backend.put_record(record(b"b", expires_at_us=300), now_us=NOW_US)
        await backend.put_record(refreshed := record(b"b", expires_at_us=400), now_us=NOW_US)
        assert await backend.get_record(record(b"a").key, now_us=299) is not None
        assert await backend.get_record(record(b"a").key, now_us=300) is None
        assert (await backend.delete_expired(now_us=300, retire_before_us=0)).records == 1
        assert await backend.records() == [refreshed]

    async def test_a_pass_over_the_records_visits_each_once_in_order(self, backend: StorageBackend) -> None:
        stored = [record(b"%02d" % i) for i in range(13)]
        for each in reversed(stored):
            await backend.put_record(each, now_us=NOW_US)
        for limit in (1, 5, 13, 1000):
            visited: list[PlainRecord] = []
            while page := await backend.records(after=visited[-1].key if visited else None, limit=limit):
                assert len(page) <= limit
                visited += page
            assert visited == stored

    async def test_providers_come_with_the_last_to_expire_first(self, backend: StorageBackend) -> None:
        a, b, c = (provider(name, expires_at_us=at_us) for name, at_us in ((b"a", 500), (b"b", 700), (b"c", 600)))
        elsewhere = provider(b"a", multihash=b"other content")
        for each in (a, b, c, elsewhere):
            await backend.add_provider(each, now_us=NOW_US)
        assert await backend.get_providers(b"content", now_us=NOW_US) == [b, c, a]
        assert await backend.get_providers(b"content", now_us=NOW_US, limit=2) == [b, c]
        assert await backend.get_providers(b"content", now_us=500) == [b, c]
        assert await backend.get_providers(b"nothing", now_us=NOW_US) == []

    async def test_a_provider_expires_unless_it_was_refreshed(self, backend: StorageBackend) -> None:
        await backend.add_provider(provider(b"a", expires_at_us=300), now_us=NOW_US)
        refreshed = replace(provider(b"a", expires_at_us=400), addresses=(b"moved",))
        await backend.add_provider(refreshed, now_us=NOW_US)
        await backend.add_provider(provider(b"b", expires_at_us=300), now_us=NOW_US)
        assert (await backend.delete_expired(now_us=300, retire_before_us=0)).providers == 1
        assert await backend.get_providers(b"content", now_us=NOW_US) == [refreshed]
        assert (await backend.stats()).providers == 1

    async def test_the_farthest_expiry_overflows_nothing(self, backend: StorageBackend) -> None:
        await backend.put_record(record(b"a", expires_at_us=(1 << 64) - 1), now_us=NOW_US)
        await backend.add_provider(provider(b"a", expires_at_us=(1 << 64) - 1), now_us=NOW_US)
        await backend.delete_expired(now_us=1 << 60, retire_before_us=1 << 60)
        assert await backend.get_record(record(b"a").key, now_us=1 << 60) is not None
        assert len(await backend.get_providers(b"content", now_us=1 << 60)) == 1

    async def test_peers_come_with_the_last_seen_first(self, backend: StorageBackend) -> None:
        a, b, c = (known_peer(name, last_seen_us=at_us) for name, at_us in ((b"a", 500), (b"b", 700), (b"c", 600)))
        await backend.put_peers([a, b, c])
        assert await backend.peers() == [b, c, a]
        assert await backend.peers(limit=2) == [b, c]
        await backend.remove_peers([b.peer, PeerId(b"nobody")])
        assert await backend.peers() == [c, a]

    async def test_a_peer_seen_again_keeps_when_it_was_first_seen(self, backend: StorageBackend) -> None:
        await backend.put_peers([known_peer(b"a", first_seen_us=100, last_seen_us=100)])
        again = known_peer(b"a", first_seen_us=500, last_seen_us=500, source="identify")
        await backend.put_peers([again, again])
        assert await backend.peers() == [replace(again, first_seen_us=TimestampUs(100))]

    async def test_own_slots_never_move_backwards(self, backend: StorageBackend) -> None:
        slot = make_entry(subkey=b"mine").slot
        written = OwnSlot(slot, TimestampUs(100), TimestampUs(900))
        assert await backend.own_slot(slot) is None
        await backend.put_own_slots([written])
        assert await backend.own_slot(slot) == written
        await backend.put_own_slots([OwnSlot(slot, TimestampUs(99), TimestampUs(800))])
        assert await backend.own_slot(slot) == written
        await backend.put_own_slots([OwnSlot(slot, TimestampUs(101), TimestampUs(800))])
        assert await backend.own_slot(slot) == OwnSlot(slot, TimestampUs(101), TimestampUs(900))
        assert await backend.own_slot(Slot(slot.key, slot.publisher, b"other")) is None

    async def test_stats_count_what_is_there(self, backend: StorageBackend) -> None:
        first, second, third = make_entry(), make_entry(subkey=b"2"), make_entry(b"longer", key=OTHER_KEY)
        newer = make_entry(b"newer and longer", created_at_us=150)
        await backend.put_entries([first, second, third, newer], now_us=NOW_US)
        await backend.put_record(record(b"a"), now_us=NOW_US)
        await backend.add_provider(provider(b"a"), now_us=NOW_US)
        await backend.add_provider(provider(b"b"), now_us=NOW_US)
        await backend.put_peers([known_peer(b"a"), known_peer(b"b"), known_peer(b"c")])
        size_bytes = newer.size_bytes + second.size_bytes
        assert await backend.stats() == StoreStats(
            keys=2, entries=3, bytes=size_bytes + third.size_bytes, records=1, providers=2, peers=3
        )
        await backend.remove_ops([third.op_id])
        assert await backend.stats() == StoreStats(keys=1, entries=2, bytes=size_bytes, records=1, providers=2, peers=3)

    async def test_concurrent_puts_to_one_slot_leave_the_newest(self, backend: StorageBackend) -> None:
        versions = [make_entry(created_at_us=100 + (7 * i) % 20) for i in range(20)]
        results: dict[OpId, PutResult] = {}

        async def put(entry: Entry) -> None:
            (results[entry.op_id],) = await backend.put_entries([entry], now_us=NOW_US)

        async with trio.open_nursery() as nursery:
            for version in versions:
                nursery.start_soon(put, version)
        newest = max(versions, key=lambda entry: entry.version)
        assert await read_all(backend, EntryQuery(key=KEY)) == [newest]
        inserted = {op_id for op_id, result in results.items() if result.outcome is PutOutcome.INSERTED}
        displaced = {result.displaced.op_id for result in results.values() if result.displaced is not None}
        assert inserted - displaced == {newest.op_id}
        assert (await backend.stats()).entries == 1

    async def test_a_cancelled_put_is_whole_or_absent_and_harms_no_other(self, backend: StorageBackend) -> None:
        pairs = [[make_entry(key=Key(b"/prime/%d" % i), subkey=s) for s in (b"1", b"2")] for i in range(12)]
        scopes = [trio.CancelScope() for _ in pairs]

        async def put(pair: Sequence[Entry], scope: trio.CancelScope) -> None:
            with scope:
                await backend.put_entries(pair, now_us=NOW_US)

        scopes[0].cancel()
        async with trio.open_nursery() as nursery:
            for pair, scope in zip(pairs, scopes, strict=True):
                nursery.start_soon(put, pair, scope)
            await trio.testing.wait_all_tasks_blocked()
            for scope in scopes[1::2]:
                scope.cancel()
        for pair, scope in zip(pairs, scopes, strict=True):
            stored = await read_all(backend, EntryQuery(key=pair[0].header.key))
            assert stored == pair or (stored == [] and scope.cancel_called)
        assert await backend.put_entries(pairs[0], now_us=NOW_US) in ([INSERTED] * 2, [DUPLICATE] * 2)

    async def test_a_closed_backend_refuses_every_call(self, backend: StorageBackend) -> None:
        entry = make_entry()
        await backend.aclose()
        await backend.aclose()
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: backend.put_entries([entry], now_us=NOW_US),
            lambda: backend.get_entries(EntryQuery(key=KEY), now_us=NOW_US),
            lambda: backend.get_ops([entry.op_id], now_us=NOW_US),
            backend.keys,
            lambda: backend.remove_ops([entry.op_id]),
            lambda: backend.delete_expired(now_us=NOW_US, retire_before_us=NOW_US),
            lambda: backend.put_record(record(b"a"), now_us=NOW_US),
            lambda: backend.get_record(record(b"a").key, now_us=NOW_US),
            backend.records,
            lambda: backend.add_provider(provider(b"a"), now_us=NOW_US),
            lambda: backend.get_providers(b"content", now_us=NOW_US),
            lambda: backend.put_peers([known_peer(b"a")]),
            backend.peers,
            lambda: backend.remove_peers([PeerId(b"a")]),
            lambda: backend.own_slot(entry.slot),
            lambda: backend.put_own_slots([OwnSlot(entry.slot, TimestampUs(1), TimestampUs(1))]),
            lambda: backend.get_meta("name"),
            lambda: backend.put_meta("name", b"value"),
            backend.meta_names,
            lambda: backend.ops(locations=range(1 << 32), created_us=range(NOW_US)),
            backend.scan_ops,
            backend.providers,
            backend.own_slots,
            backend.stats,
        ]
        for call in calls:
            with pytest.raises(StorageError):
                await call()

    async def test_closing_finishes_what_is_under_way(self, backend: StorageBackend) -> None:
        finished: list[list[PutResult]] = []

        async def put(entry: Entry) -> None:
            finished.append(await backend.put_entries([entry], now_us=NOW_US))

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(put, make_entry(subkey=b"%d" % number))
            await trio.testing.wait_all_tasks_blocked()
            await backend.aclose()
        assert finished == [[INSERTED]] * 5
