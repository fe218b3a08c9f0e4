"""What a storage backend has to do when there is no room for a plain record or a provider record.

Part of :class:`prime_dht.testing.storage_conformance.StorageConformance`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from prime_dht.entries.limits import Limits
from prime_dht.errors import ValidationError
from prime_dht.ids import KAD_KEY_BITS, KadKey, PeerId, TimestampUs, kad_key
from prime_dht.kad.keyspace import Prefix
from prime_dht.storage.base import PlainRecord, ProviderRecord, StorageBackend
from prime_dht.storage.capacity import Capacity
from prime_dht.testing.storage_samples import NOW_US, provider, record

LOCAL = KadKey(0b1010 << (KAD_KEY_BITS - 4))
NOTHING = Prefix.of(LOCAL, KAD_KEY_BITS)
"""An arc so narrow that no key is in it."""

RECORDS = sorted((record(b"%d" % number) for number in range(16)), key=lambda each: kad_key(each.key) ^ LOCAL)
"""The nearest to the node first; and so are these:"""
CONTENTS = sorted((b"%d" % number for number in range(16)), key=lambda multihash: kad_key(multihash) ^ LOCAL)


def set_limits(backend: StorageBackend, limits: Limits, *, arc: Prefix | None = NOTHING) -> None:
    backend.capacity = Capacity(limits=limits, local=LOCAL, responsible=arc)


async def put(backend: StorageBackend, *records: PlainRecord, now_us: int = NOW_US) -> None:
    for each in records:
        await backend.put_record(each, now_us=now_us)


async def add(backend: StorageBackend, *records: ProviderRecord, now_us: int = NOW_US) -> None:
    for each in records:
        await backend.add_provider(each, now_us=now_us)


async def held_records(backend: StorageBackend) -> list[PlainRecord]:
    """All records, nearest first."""
    return sorted(await backend.records(), key=lambda each: kad_key(each.key) ^ LOCAL)


async def held_providers(backend: StorageBackend) -> list[tuple[bytes, bytes]]:
    """The content and provider of all provider records, the content nearest to the node first."""
    names = [(each.multihash, each.provider) for each in await backend.providers()]
    return sorted(names, key=lambda name: (kad_key(name[0]) ^ LOCAL, name[1]))


class RecordsConformance:
    """See the module."""

    async def test_a_full_store_that_is_responsible_for_every_record_refuses(self, backend: StorageBackend) -> None:
        set_limits(backend, Limits(max_records=2), arc=None)
        await put(backend, *RECORDS[1:3])
        with pytest.raises(ValidationError, match="the store: 3 plain records; the limit is 2"):
            await put(backend, RECORDS[0])
        refreshed = replace(RECORDS[2], value=b"refreshed")
        await put(backend, refreshed)
        assert await held_records(backend) == [RECORDS[1], refreshed]

    async def test_the_furthest_record_goes_for_a_nearer_one_alone(self, backend: StorageBackend) -> None:
        set_limits(backend, Limits(max_records=3))
        await put(backend, RECORDS[9], RECORDS[2], RECORDS[12])
        with pytest.raises(ValidationError, match="the limit is 3"):
            await put(backend, RECORDS[13])
        await put(backend, RECORDS[11])
        assert await held_records(backend) == [RECORDS[number] for number in (2, 9, 11)]
        await put(backend, RECORDS[0], RECORDS[1])
        assert await held_records(backend) == RECORDS[:3]

    async def test_no_record_inside_the_arc_goes(self, backend: StorageBackend) -> None:
        arc = Prefix.of(LOCAL, 1)
        inside = [each for each in RECORDS if arc.covers(kad_key(each.key))]
        outside = RECORDS[len(inside) :]
        set_limits(backend, Limits(max_records=2), arc=arc)
        await put(backend, inside[-1], outside[-1], outside[0], inside[-2])
        assert await held_records(backend) == inside[-2:]
        for newcomer in (inside[0], outside[0]):
            with pytest.raises(ValidationError, match="the limit is 2"):
                await put(backend, newcomer)
        assert await held_records(backend) == inside[-2:]

    async def test_expired_records_go_first_by_their_time_and_no_more_than_need_be(
        self, backend: StorageBackend
    ) -> None:
        set_limits(backend, Limits(max_records=3), arc=None)
        late, early, lasting = (
            replace(RECORDS[15], expires_at_us=TimestampUs(290)),
            replace(RECORDS[0], expires_at_us=TimestampUs(250)),
            RECORDS[7],
        )
        await put(backend, late, early, lasting)
        with pytest.raises(ValidationError, match="the limit is 3"):
            await put(backend, RECORDS[1], now_us=249)
        await put(backend, RECORDS[2], now_us=300)
        assert await held_records(backend) == [RECORDS[2], lasting, late]
        await put(backend, late, now_us=300)  # what has expired does not stand in its own way
        assert (await backend.stats()).records == 3

    async def test_a_record_that_grows_makes_room_and_what_is_refused_leaves_what_was_there(
        self, backend: StorageBackend
    ) -> None:
        small = [replace(each, value=bytes(100)) for each in RECORDS[:4]]
        await put(backend, *small)
        set_limits(backend, Limits(max_records_bytes=sum(each.size_bytes for each in small)))
        for too_large in (replace(RECORDS[3], value=bytes(101)), replace(RECORDS[0], value=bytes(500))):
            with pytest.raises(ValidationError, match="bytes of plain records; the limit is"):
                await put(backend, too_large)
        assert await held_records(backend) == small
        grown = replace(RECORDS[1], value=bytes(200))
        await put(backend, grown)
        assert await held_records(backend) == [small[0], grown, small[2]]

    async def test_as_many_records_go_as_the_bytes_of_the_newcomer_take(self, backend: StorageBackend) -> None:
        await put(backend, *(replace(each, value=bytes(100)) for each in RECORDS[2:8]))
        held = await held_records(backend)
        set_limits(backend, Limits(max_records_bytes=sum(each.size_bytes for each in held)))
        large = replace(RECORDS[0], value=bytes(250))
        await put(backend, large)
        assert await held_records(backend) == [large, *held[:3]]

    async def test_after_the_limit_of_records_was_lowered_the_next_put_keeps_to_it(
        self, backend: StorageBackend
    ) -> None:
        await put(backend, *RECORDS[:6])
        set_limits(backend, Limits(max_records=2))
        await put(backend, RECORDS[1])
        assert await held_records(backend) == RECORDS[:2]

    async def test_a_content_has_so_many_providers_and_those_that_were_first_stay(
        self, backend: StorageBackend
    ) -> None:
        set_limits(backend, Limits(max_providers_per_key=2))
        await add(backend, provider(b"a", expires_at_us=300), provider(b"b"))
        with pytest.raises(ValidationError, match="the content: 3 providers; the limit is 2"):
            await add(backend, provider(b"c"))
        await add(backend, provider(b"c", multihash=b"other content"))
        await add(backend, provider(b"a", expires_at_us=400))
        with pytest.raises(ValidationError, match="the limit is 2"):
            await add(backend, provider(b"c"), now_us=399)
        await add(backend, provider(b"c"), now_us=400)
        found = await backend.get_providers(b"content", now_us=400)
        assert {each.provider for each in found} == {b"b", b"c"}

    async def test_a_peer_that_provides_more_than_its_share_replaces_what_it_announced_first(
        self, backend: StorageBackend
    ) -> None:
        set_limits(backend, Limits(max_providers_per_peer=2), arc=None)
        await add(backend, *(provider(b"other", multihash=content) for content in CONTENTS[:2]))
        for content, expires_at_us in ((CONTENTS[1], 500), (CONTENTS[0], 400), (CONTENTS[2], 600)):
            await add(backend, provider(b"peer", multihash=content, expires_at_us=expires_at_us))
        of_others = [(content, b"other") for content in CONTENTS[:2]]
        assert await held_providers(backend) == [
            of_others[0],
            of_others[1],
            (CONTENTS[1], b"peer"),
            (CONTENTS[2], b"peer"),
        ]
        await add(backend, provider(b"peer", multihash=CONTENTS[1], expires_at_us=700))
        await add(backend, provider(b"peer", multihash=CONTENTS[3], expires_at_us=700))
        assert await held_providers(backend) == [*of_others, (CONTENTS[1], b"peer"), (CONTENTS[3], b"peer")]
        set_limits(backend, Limits(max_providers_per_peer=1), arc=None)
        await add(backend, provider(b"peer", multihash=CONTENTS[3], expires_at_us=700))
        assert await held_providers(backend) == [*of_others, (CONTENTS[3], b"peer")]

    async def test_a_full_store_takes_nearer_contents_in_place_of_the_furthest(self, backend: StorageBackend) -> None:
        set_limits(backend, Limits(max_providers=3))
        await add(backend, *(provider(b"a", multihash=CONTENTS[number]) for number in (9, 2, 12)))
        with pytest.raises(ValidationError, match="the store: 4 providers; the limit is 3"):
            await add(backend, provider(b"a", multihash=CONTENTS[13]))
        with pytest.raises(ValidationError, match="the limit is 3"):  # nobody is pushed out by one as far
            await add(backend, provider(b"b", multihash=CONTENTS[12]))
        await add(backend, provider(b"b", multihash=CONTENTS[9]))
        assert await held_providers(backend) == [(CONTENTS[2], b"a"), (CONTENTS[9], b"a"), (CONTENTS[9], b"b")]

    async def test_of_one_content_the_providers_that_expire_first_go_first(self, backend: StorageBackend) -> None:
        set_limits(backend, Limits(max_providers=3))
        times_us = {b"c": 700, b"a": 900, b"b": 700}
        await add(backend, *(provider(name, expires_at_us=time_us) for name, time_us in times_us.items()))
        near = min(CONTENTS, key=lambda content: kad_key(content) ^ LOCAL)
        for number, left in enumerate(({b"a", b"c"}, {b"a"}, set())):
            await add(backend, provider(b"%d" % number, multihash=near))
            found = await backend.get_providers(b"content", now_us=NOW_US)
            assert {each.provider for each in found} == left

    async def test_no_provider_of_a_content_inside_the_arc_goes(self, backend: StorageBackend) -> None:
        set_limits(backend, Limits(max_providers=2), arc=Prefix.of(LOCAL, 0))
        await add(backend, provider(b"a", multihash=CONTENTS[9]), provider(b"b", multihash=CONTENTS[9]))
        with pytest.raises(ValidationError, match="the limit is 2"):
            await add(backend, provider(b"a", multihash=CONTENTS[0]))
        assert (await backend.stats()).providers == 2

    async def test_expired_providers_make_room_before_any_other(self, backend: StorageBackend) -> None:
        set_limits(backend, Limits(max_providers=2))
        await add(
            backend, provider(b"a", multihash=CONTENTS[0], expires_at_us=300), provider(b"a", multihash=CONTENTS[9])
        )
        await add(backend, provider(b"b", multihash=CONTENTS[15]), now_us=300)
        assert await held_providers(backend) == [(CONTENTS[9], b"a"), (CONTENTS[15], b"b")]

    async def test_providers_take_so_many_bytes_addresses_included(self, backend: StorageBackend) -> None:
        small = [provider(b"a", multihash=content) for content in CONTENTS[:2]]
        await add(backend, *small)
        set_limits(backend, Limits(max_providers_bytes=sum(each.size_bytes for each in small)))
        with pytest.raises(ValidationError, match="bytes of providers; the limit is"):
            await add(backend, provider(b"a", multihash=CONTENTS[2]))
        await add(backend, replace(small[0], addresses=(*small[0].addresses, b"")))
        assert await held_providers(backend) == [(CONTENTS[0], b"a")]

    async def test_a_provider_that_has_more_addresses_than_there_is_room_for_is_believed_longer_with_the_old_ones(
        self, backend: StorageBackend
    ) -> None:
        small = [provider(b"a", multihash=content, expires_at_us=900) for content in CONTENTS[:2]]
        await add(backend, *small)
        set_limits(backend, Limits(max_providers_bytes=sum(each.size_bytes for each in small)))
        before = (await backend.stats()).providers
        larger = replace(small[1], addresses=(*small[1].addresses, b""), expires_at_us=TimestampUs(2000))
        await add(backend, larger)
        assert (await backend.stats()).providers == before
        assert await backend.get_providers(CONTENTS[1], now_us=1000) == [replace(larger, addresses=small[1].addresses)]
        set_limits(backend, Limits(max_providers_bytes=small[1].size_bytes))
        moved = replace(larger, addresses=tuple(bytes(len(address)) for address in small[1].addresses))
        await add(backend, moved)  # no larger than what is held, though that is more than there is room for now
        assert await backend.get_providers(CONTENTS[1], now_us=1000) == [moved]
        with pytest.raises(ValidationError, match="bytes of providers; the limit is"):  # what has expired is not held
            await add(backend, larger, now_us=2000)
        assert await held_providers(backend) == []

    async def test_what_has_expired_and_was_deleted_counts_no_longer(self, backend: StorageBackend) -> None:
        one, other = record(b"a"), provider(b"a", multihash=CONTENTS[0])
        limits = Limits(
            max_records=1,
            max_records_bytes=one.size_bytes,
            max_providers=1,
            max_providers_bytes=other.size_bytes,
            max_providers_per_key=1,
            max_providers_per_peer=1,
        )
        set_limits(backend, limits, arc=None)
        for _ in range(3):
            await put(backend, one, one)
            await add(backend, other, other)
            with pytest.raises(ValidationError, match="the limit is 1"):
                await put(backend, record(b"b"))
            with pytest.raises(ValidationError, match="the limit is 1"):
                await add(backend, replace(other, provider=PeerId(b"b")))
            gone = await backend.delete_expired(now_us=1000, retire_before_us=0)
            assert (gone.records, gone.providers) == (1, 1)
