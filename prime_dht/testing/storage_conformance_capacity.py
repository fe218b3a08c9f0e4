"""What a storage backend has to do when it is full: refuse, or evict in the order that everybody keeps to.

Part of :class:`prime_dht.testing.storage_conformance.StorageConformance`.
"""

from __future__ import annotations

from prime_dht.entries.entry import Entry
from prime_dht.entries.limits import Limits
from prime_dht.ids import KAD_KEY_BITS, KadKey, Key, kad_key
from prime_dht.kad.keyspace import Prefix
from prime_dht.storage.base import EntryQuery, Gone, PutOutcome, PutResult, StorageBackend
from prime_dht.storage.capacity import Capacity
from prime_dht.testing.storage_samples import GROUP_KEY, KEY, NOW_US, OTHER_KEY, bare, make_entry, read_all

LOCAL = KadKey(0b1010 << (KAD_KEY_BITS - 4))
NOTHING = Prefix.of(LOCAL, KAD_KEY_BITS)
"""An arc so narrow that no key is in it."""

NEAREST_FIRST = sorted((Key(b"/prime/%d" % number) for number in range(16)), key=lambda key: kad_key(key) ^ LOCAL)
INSERTED = PutResult(PutOutcome.INSERTED)


async def held(backend: StorageBackend) -> list[Key]:
    """The keys that are held, nearest first."""
    return sorted(await backend.keys(), key=lambda key: kad_key(key) ^ LOCAL)


async def put(backend: StorageBackend, entry: Entry, *, now_us: int = NOW_US) -> PutResult:
    (result,) = await backend.put_entries([entry], now_us=now_us)
    return result


def is_refused(result: PutResult, limit: str) -> bool:
    return (
        result.outcome is PutOutcome.REFUSED
        and result.displaced is None
        and result.evicted == ()
        and limit in result.reason
    )


class CapacityConformance:
    """See the module."""

    async def test_a_key_takes_so_many_slots_and_nobody_loses_one(self, backend: StorageBackend) -> None:
        backend.capacity = Capacity(limits=Limits(max_slots_per_key=2), local=LOCAL, responsible=NOTHING)
        entries = [make_entry(writer=writer) for writer in range(3)]
        results = await backend.put_entries(entries, now_us=NOW_US)
        assert results[:2] == [INSERTED] * 2
        assert is_refused(results[2], "3 slots; the limit is 2")
        newer = make_entry(b"newer", created_at_us=101)
        assert await put(backend, newer) == PutResult(PutOutcome.INSERTED, Gone.of(entries[0]))
        assert await put(backend, make_entry(key=OTHER_KEY, writer=2)) == INSERTED
        await backend.remove_ops([newer.op_id])
        assert await put(backend, entries[2]) == INSERTED

    async def test_in_a_group_each_publisher_has_so_many_slots_of_its_own(self, backend: StorageBackend) -> None:
        backend.capacity = Capacity(limits=Limits(max_slots_per_key=2), local=LOCAL, responsible=NOTHING)
        greedy = [make_entry(key=GROUP_KEY, subkey=subkey, writer=1) for subkey in (b"", b"1", b"2")]
        results = await backend.put_entries(greedy, now_us=NOW_US)
        assert results[:2] == [INSERTED] * 2
        assert is_refused(results[2], "3 slots; the limit is 2")
        for writer in (0, 2):
            others = [make_entry(key=GROUP_KEY, subkey=subkey, writer=writer) for subkey in (b"", b"1")]
            assert await backend.put_entries(others, now_us=NOW_US) == [INSERTED] * 2
        await backend.remove_ops([greedy[0].op_id])
        assert await put(backend, greedy[2]) == INSERTED

    async def test_a_publisher_holds_so_many_entries_and_others_are_not_touched(self, backend: StorageBackend) -> None:
        backend.capacity = Capacity(limits=Limits(max_publisher_entries=2), local=LOCAL, responsible=NOTHING)
        entries = [make_entry(key=key) for key in NEAREST_FIRST[:3]]
        results = await backend.put_entries(entries, now_us=NOW_US)
        assert is_refused(results[2], "the publisher: 3 entries; the limit is 2")
        assert await put(backend, make_entry(key=NEAREST_FIRST[2], writer=1)) == INSERTED
        assert await put(backend, make_entry(key=NEAREST_FIRST[0], created_at_us=101)) != INSERTED
        await backend.remove_ops([entries[1].op_id])
        assert await put(backend, entries[2]) == INSERTED

    async def test_a_publisher_holds_so_many_bytes(self, backend: StorageBackend) -> None:
        small, large = make_entry(bytes(100)), make_entry(bytes(1000), created_at_us=101)
        limit = small.size_bytes + large.size_bytes - 1
        backend.capacity = Capacity(limits=Limits(max_publisher_bytes=limit), local=LOCAL, responsible=NOTHING)
        other = make_entry(bytes(100), subkey=b"2")
        assert await backend.put_entries([small, other], now_us=NOW_US) == [INSERTED] * 2
        assert is_refused(await put(backend, large), f"bytes; the limit is {limit:,}")
        assert await read_all(backend, EntryQuery(key=KEY)) == [small, other]
        await backend.remove_ops([other.op_id])
        assert await put(backend, large) == PutResult(PutOutcome.INSERTED, Gone.of(small))

    async def test_a_full_store_that_is_responsible_for_everything_refuses(self, backend: StorageBackend) -> None:
        entries = [make_entry(key=key) for key in NEAREST_FIRST[:3]]
        backend.capacity = Capacity(limits=Limits(max_store_entries=2), local=LOCAL)
        assert await backend.put_entries(entries[1:], now_us=NOW_US) == [INSERTED] * 2
        assert is_refused(await put(backend, entries[0]), "the store: 3 entries; the limit is 2")
        assert await held(backend) == NEAREST_FIRST[1:3]
        newer = make_entry(b"newer", key=NEAREST_FIRST[1], created_at_us=101)
        assert await put(backend, newer) == PutResult(PutOutcome.INSERTED, Gone.of(entries[1]))

    async def test_what_need_not_be_retained_goes_first_even_inside_the_arc(self, backend: StorageBackend) -> None:
        backend.capacity = Capacity(limits=Limits(max_store_entries=3), local=LOCAL, responsible=NOTHING)
        near, far, farthest, newcomer = (NEAREST_FIRST[i] for i in (0, 14, 15, 7))
        old = make_entry(key=near, expires_at_us=190)
        older = make_entry(key=far, expires_at_us=150, retain_until_us=180)
        await backend.put_entries([old, older, make_entry(key=farthest)], now_us=NOW_US)
        backend.capacity.responsible = Prefix.of(LOCAL, 0)
        assert await put(backend, make_entry(key=newcomer)) == INSERTED._replace(evicted=(Gone.of(older),))
        assert await put(backend, make_entry(key=far)) == INSERTED._replace(evicted=(Gone.of(old),))
        assert is_refused(await put(backend, make_entry(key=near)), "the limit is 3")

    async def test_expired_values_go_before_any_entry_and_their_headers_stay(self, backend: StorageBackend) -> None:
        expired = make_entry(bytes(500), key=NEAREST_FIRST[0], expires_at_us=150, retain_until_us=1000)
        far = make_entry(bytes(500), key=NEAREST_FIRST[9])
        newcomer = make_entry(bytes(400), key=NEAREST_FIRST[5])
        await backend.put_entries([expired, far], now_us=120)
        limits = Limits(max_store_bytes=bare(expired).size_bytes + far.size_bytes + newcomer.size_bytes)
        backend.capacity = Capacity(limits=limits, local=LOCAL, responsible=NOTHING)
        assert await put(backend, newcomer, now_us=150) == INSERTED
        assert await backend.get_ops([expired.op_id], now_us=120) == [bare(expired)]
        assert (await backend.stats()).bytes == limits.max_store_bytes

    async def test_the_furthest_goes_first_and_what_is_further_still_does_not_come(
        self, backend: StorageBackend
    ) -> None:
        backend.capacity = Capacity(limits=Limits(max_store_entries=4), local=LOCAL, responsible=NOTHING)
        order = [9, 2, 12, 7]
        entries = {number: make_entry(key=NEAREST_FIRST[number]) for number in range(16)}
        assert await backend.put_entries([entries[number] for number in order], now_us=NOW_US) == [INSERTED] * 4
        assert is_refused(await put(backend, entries[13]), "the limit is 4")
        assert await put(backend, entries[11]) == INSERTED._replace(evicted=(Gone.of(entries[12]),))
        results = await backend.put_entries([entries[0], entries[1], entries[10]], now_us=NOW_US)
        assert results[:2] == [INSERTED._replace(evicted=(Gone.of(entries[gone]),)) for gone in (11, 9)]
        assert is_refused(results[2], "the limit is 4")
        assert await held(backend) == [NEAREST_FIRST[number] for number in (0, 1, 2, 7)]

    async def test_of_one_key_those_that_came_first_go_first(self, backend: StorageBackend) -> None:
        backend.capacity = Capacity(limits=Limits(max_store_entries=3), local=LOCAL, responsible=NOTHING)
        first, second, third = (make_entry(key=NEAREST_FIRST[9], subkey=subkey) for subkey in (b"c", b"a", b"b"))
        await backend.put_entries([bare(first), second, third], now_us=NOW_US)
        assert await put(backend, first) == PutResult(PutOutcome.DUPLICATE)  # its value came later, not itself
        assert is_refused(await put(backend, make_entry(key=NEAREST_FIRST[9], subkey=b"d")), "the limit is 3")
        assert await put(backend, make_entry(key=NEAREST_FIRST[3])) == INSERTED._replace(evicted=(Gone.of(first),))
        anew = make_entry(b"anew", key=NEAREST_FIRST[9], subkey=b"a", created_at_us=101)
        await put(backend, anew)
        for number, gone in enumerate((third, anew)):
            nearer = make_entry(key=NEAREST_FIRST[number])
            assert await put(backend, nearer) == INSERTED._replace(evicted=(Gone.of(gone),))

    async def test_nothing_inside_the_arc_goes_while_anything_else_can(self, backend: StorageBackend) -> None:
        arc = Prefix.of(LOCAL, 1)
        inside = [key for key in NEAREST_FIRST if arc.covers(kad_key(key))]
        outside = NEAREST_FIRST[len(inside) :]
        backend.capacity = Capacity(limits=Limits(max_store_entries=3), local=LOCAL, responsible=arc)
        entries = {key: make_entry(key=key) for key in NEAREST_FIRST}
        for key in (outside[0], inside[-1], outside[-1]):
            assert await put(backend, entries[key]) == INSERTED
        assert await put(backend, entries[inside[-2]]) == INSERTED._replace(evicted=(Gone.of(entries[outside[-1]]),))
        assert await put(backend, entries[inside[-3]]) == INSERTED._replace(evicted=(Gone.of(entries[outside[0]]),))
        assert is_refused(await put(backend, entries[inside[0]]), "the limit is 3")
        assert is_refused(await put(backend, entries[outside[0]]), "the limit is 3")
        assert await held(backend) == inside[-3:]

    async def test_what_comes_into_an_arc_elsewhere_makes_room_of_what_is_nearer_to_the_node(
        self, backend: StorageBackend
    ) -> None:
        elsewhere = Prefix.of(KadKey(LOCAL ^ (1 << (KAD_KEY_BITS - 1))), 1)
        near, far = make_entry(key=NEAREST_FIRST[0]), make_entry(key=NEAREST_FIRST[15])
        backend.capacity = Capacity(limits=Limits(max_store_entries=1), local=LOCAL, responsible=elsewhere)
        assert await put(backend, near) == INSERTED
        assert await put(backend, far) == INSERTED._replace(evicted=(Gone.of(near),))
        assert is_refused(await put(backend, near), "the limit is 1")

    async def test_as_many_go_as_the_bytes_of_the_newcomer_take(self, backend: StorageBackend) -> None:
        entries = [make_entry(bytes(100), key=key) for key in NEAREST_FIRST[2:8]]
        await backend.put_entries(entries, now_us=NOW_US)
        limits = Limits(max_store_bytes=sum(entry.size_bytes for entry in entries))
        backend.capacity = Capacity(limits=limits, local=LOCAL, responsible=NOTHING)
        large = make_entry(bytes(600), key=NEAREST_FIRST[0])
        result = await put(backend, large)
        gone = next(n for n in range(7) if sum(e.size_bytes for e in entries[-n:]) >= large.size_bytes and n)
        assert result == INSERTED._replace(evicted=tuple(Gone.of(entry) for entry in entries[: -gone - 1 : -1]))
        assert (await backend.stats()).bytes <= limits.max_store_bytes

    async def test_where_all_that_could_go_is_not_enough_nothing_goes(self, backend: StorageBackend) -> None:
        near, far = make_entry(bytes(800), key=NEAREST_FIRST[0]), make_entry(key=NEAREST_FIRST[9])
        await backend.put_entries([near, far], now_us=NOW_US)
        limits = Limits(max_store_bytes=near.size_bytes + far.size_bytes)
        backend.capacity = Capacity(limits=limits, local=LOCAL, responsible=NOTHING)
        large = make_entry(bytes(500), key=NEAREST_FIRST[5])
        assert is_refused(await put(backend, large), f"bytes; the limit is {limits.max_store_bytes:,}")
        assert await held(backend) == [NEAREST_FIRST[0], NEAREST_FIRST[9]]

    async def test_a_lacking_value_is_refused_where_it_has_no_room(self, backend: StorageBackend) -> None:
        entry = make_entry(bytes(500))
        await put(backend, bare(entry))
        backend.capacity = Capacity(limits=Limits(max_store_bytes=entry.size_bytes - 1), local=LOCAL)
        assert is_refused(await put(backend, entry), "bytes; the limit is")
        assert await read_all(backend, EntryQuery(key=KEY)) == [bare(entry)]
        backend.capacity.limits = Limits(max_store_bytes=entry.size_bytes)
        assert await put(backend, entry) == PutResult(PutOutcome.DUPLICATE)
        assert await read_all(backend, EntryQuery(key=KEY)) == [entry]

    async def test_counts_follow_whatever_comes_and_goes(self, backend: StorageBackend) -> None:
        backend.capacity = Capacity(limits=Limits(max_publisher_entries=2, max_store_entries=3), local=LOCAL)
        for round_ in range(3):
            entries = [make_entry(subkey=b"%d/%d" % (round_, number)) for number in range(2)]
            await backend.put_entries(entries, now_us=NOW_US)
            assert (await put(backend, make_entry(subkey=b"more"))).outcome is PutOutcome.REFUSED
            await backend.put_entries([make_entry(subkey=entries[0].header.subkey, created_at_us=101)], now_us=NOW_US)
            await backend.delete_expired(now_us=1000, retire_before_us=999)
            assert (await put(backend, make_entry(subkey=b"more"))).outcome is PutOutcome.REFUSED
            await backend.remove_ops([op.op_id for op in await self._all_of(backend)])
            assert (await backend.stats()).bytes == 0

    async def _all_of(self, backend: StorageBackend) -> list[Entry]:
        return await read_all(backend, EntryQuery(key=KEY, include_expired=True))
