"""What a node answers about plain records and providers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from prime_dht.config import DhtConfig
from prime_dht.entries.limits import Limits
from prime_dht.errors import RemoteProtocolError, ValidationError
from prime_dht.ids import US_PER_S, Key, PeerId, TimestampUs
from prime_dht.node.server import MAX_RECORD_BYTES
from prime_dht.storage.base import PlainRecord
from prime_dht.storage.memory import MemoryBackend
from prime_dht.testing.serving import ASKER, NOW_US, Serving
from prime_dht.wire.kad import (
    AddProvider,
    Connection,
    GetProviders,
    GetValue,
    PeerRecord,
    PutValue,
    Record,
    Reply,
)

KEY = Key(b"/x/k")
MULTIHASH = b"\x00\x01h"
ADDRESS = Multiaddr("/ip4/11.0.0.1/tcp/4001").to_bytes()
PUBLIC_KEY = create_new_key_pair(bytes(32)).public_key
PK_KEY = Key(b"/pk/" + ID.from_pubkey(PUBLIC_KEY).to_bytes())


class Greatest:
    """Of several values the greatest is best; it must be of digits."""

    def validate(self, key: bytes, value: bytes) -> None:
        if not value.isdigit():
            raise ValidationError("not digits")

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        return max(range(len(values)), key=lambda index: int(values[index]))


class Yielding(MemoryBackend):
    """A store in which others get a turn between any two calls, as with one on disk."""

    async def get_record(self, key: Key, *, now_us: int) -> PlainRecord | None:
        await trio.lowlevel.checkpoint()
        return await super().get_record(key, now_us=now_us)

    async def put_record(self, record: PlainRecord, *, now_us: int) -> None:
        await trio.lowlevel.checkpoint()
        await super().put_record(record, now_us=now_us)


def serving(config: DhtConfig | None = None) -> Serving:
    return Serving(config, validators={"x": Greatest()}, storage=Yielding())


def put(value: bytes, *, key: Key = KEY, ttl_s: int = 0, publisher: bytes = b"") -> PutValue:
    return PutValue((Record(key, value, "", publisher, ttl_s),))


def provide(*providers: PeerRecord) -> AddProvider:
    return AddProvider(MULTIHASH, providers)


def value_of(reply: Reply) -> bytes | None:
    return None if reply.record is None else reply.record.value


# Plain records


async def test_a_public_key_is_put_echoed_and_got_with_the_time_it_was_received() -> None:
    node = serving()
    node.meet(3)
    echo = await node.handle(put(PUBLIC_KEY.serialize(), key=PK_KEY))
    assert echo == Reply(
        record=Record(PK_KEY, PUBLIC_KEY.serialize(), "2023-11-14T22:13:20.000001000Z"), replicates=True
    )
    node.clock.time_us += 5 * US_PER_S
    got = await node.handle(GetValue(PK_KEY))
    assert got.record == echo.record
    assert len(got.closer) == 3


async def test_closer_peers_come_with_an_echo_only_if_asked_for() -> None:
    node = serving()
    node.meet(3)
    reply = await node.handle(PutValue((Record(KEY, b"1"),), want_closer=True))
    assert len(reply.closer) == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (Key(b"/unknown/k"), b"1"),
        (KEY, b"not valid"),
        (PK_KEY, PUBLIC_KEY.serialize()[:-1] + b"\x00"),
        (KEY, b"1" * (MAX_RECORD_BYTES + 1)),
        (Key(b"/x/" + b"k" * 1024), b"1"),
    ],
    ids=["no validator", "not valid", "another's public key", "value too large", "key too large"],
)
async def test_a_record_that_cannot_be_taken_is_refused_and_not_kept(key: Key, value: bytes) -> None:
    node = serving()
    with pytest.raises(ValidationError) as caught:
        await node.handle(put(value, key=key))
    assert not isinstance(caught.value, RemoteProtocolError)
    assert value_of(await node.handle(GetValue(key))) is None


async def test_a_key_without_a_namespace_is_a_breach_of_protocol() -> None:
    for key in (Key(b"k"), Key(b"/k"), Key(b"//k"), Key(b"/\xff/k")):
        with pytest.raises(RemoteProtocolError):
            await serving().handle(put(b"1", key=key))
        with pytest.raises(RemoteProtocolError):
            await serving().handle(GetValue(key))


async def test_the_better_record_is_kept_and_the_worse_one_refused() -> None:
    node = serving()
    await node.handle(put(b"5"))
    with pytest.raises(ValidationError, match="better"):
        await node.handle(put(b"3"))
    assert value_of(await node.handle(GetValue(KEY))) == b"5"
    await node.handle(put(b"7"))
    assert value_of(await node.handle(GetValue(KEY))) == b"7"


async def test_the_same_record_again_lives_from_then_on() -> None:
    node = serving(DhtConfig(record_ttl_s=10.0))
    await node.handle(put(b"5"))
    node.clock.time_us += 9 * US_PER_S
    await node.handle(put(b"5"))
    node.clock.time_us += 9 * US_PER_S
    assert value_of(await node.handle(GetValue(KEY))) == b"5"
    node.clock.time_us += 1 * US_PER_S
    assert value_of(await node.handle(GetValue(KEY))) is None


async def test_concurrent_puts_keep_the_best() -> None:
    node = serving()

    async def try_to_put(value: bytes) -> None:
        try:
            await node.handle(put(value))
        except ValidationError:
            return

    for values in (range(20), reversed(range(20))):
        async with trio.open_nursery() as nursery:
            for value in values:
                nursery.start_soon(try_to_put, b"%d" % value)
        assert value_of(await node.handle(GetValue(KEY))) == b"19"


async def test_a_record_lives_for_the_ttl_it_came_with_but_no_longer_than_this_node_keeps_any() -> None:
    node = serving(DhtConfig(record_ttl_s=100.0))
    await node.handle(put(b"1", key=Key(b"/x/short"), ttl_s=10))
    await node.handle(put(b"1", key=Key(b"/x/long"), ttl_s=4_000_000_000))
    node.clock.time_us += 11 * US_PER_S
    assert value_of(await node.handle(GetValue(Key(b"/x/short")))) is None
    assert value_of(await node.handle(GetValue(Key(b"/x/long")))) == b"1"
    node.clock.time_us += 90 * US_PER_S
    assert value_of(await node.handle(GetValue(Key(b"/x/long")))) is None


async def test_a_publisher_is_passed_on_if_it_is_a_peer_id() -> None:
    node = serving()
    await node.handle(put(b"1", key=Key(b"/x/a"), publisher=ASKER))
    await node.handle(put(b"1", key=Key(b"/x/b"), publisher=b"nobody"))
    for key, publisher in ((b"/x/a", ASKER), (b"/x/b", b"")):
        got = (await node.handle(GetValue(Key(key)))).record
        assert got is not None
        assert got.publisher == publisher


async def test_a_stored_record_that_is_not_valid_is_not_returned_and_gives_way_to_a_valid_one() -> None:
    node = serving()
    await node.storage.put_record(
        PlainRecord(
            key=KEY,
            value=b"not valid",
            received_at_us=TimestampUs(NOW_US),
            expires_at_us=TimestampUs(NOW_US + 1000),
        ),
        now_us=NOW_US,
    )
    assert value_of(await node.handle(GetValue(KEY))) is None
    await node.handle(put(b"0"))
    assert value_of(await node.handle(GetValue(KEY))) == b"0"


async def test_a_record_for_which_there_is_no_room_is_refused_and_one_that_is_held_can_be_put_again() -> None:
    node = serving()
    node.storage.capacity.limits = Limits(max_records=1)
    await node.handle(put(b"1"))
    with pytest.raises(ValidationError, match="the store: 2 plain records; the limit is 1"):
        await node.handle(put(b"1", key=Key(b"/x/other")))
    await node.handle(put(b"2"))
    assert value_of(await node.handle(GetValue(KEY))) == b"2"


# Providers


async def test_a_provider_is_added_and_named_with_its_addresses_and_closer_peers_beside_it() -> None:
    node = serving()
    node.meet(3)
    await node.handle(provide(PeerRecord(ASKER, (ADDRESS,))))
    reply = await node.handle(GetProviders(MULTIHASH), asker=PeerId(b"\x00\x05other"))
    assert reply.providers == (PeerRecord(ASKER, (ADDRESS,), Connection.CAN_CONNECT),)
    assert len(reply.closer) == 3
    assert node.network.addresses_of(ASKER) == (ADDRESS,)


async def test_a_provider_is_not_believed_that_it_lives_on_this_nodes_own_network() -> None:
    node = serving()
    inside = Multiaddr("/ip4/10.0.0.1/tcp/6379").to_bytes()
    await node.handle(provide(PeerRecord(ASKER, (inside, ADDRESS))))
    assert node.network.addresses_of(ASKER) == (ADDRESS,)


@pytest.mark.parametrize(
    "providers",
    [
        (),
        (PeerRecord(PeerId(b"\x00\x05other"), (ADDRESS,)),),
        (PeerRecord(ASKER),),
        (PeerRecord(ASKER, (b"no multiaddr",)),),
    ],
)
async def test_only_the_sender_with_an_address_is_added(providers: tuple[PeerRecord, ...]) -> None:
    node = serving()
    with pytest.raises(RemoteProtocolError):
        await node.handle(provide(*providers))
    assert (await node.handle(GetProviders(MULTIHASH))).providers == ()


async def test_what_a_sender_says_of_others_is_ignored() -> None:
    node = serving()
    other = PeerRecord(PeerId(b"\x00\x05other"), (ADDRESS,))
    await node.handle(provide(other, PeerRecord(ASKER, (ADDRESS,)), other))
    assert [each.peer for each in (await node.handle(GetProviders(MULTIHASH))).providers] == [ASKER]
    assert node.network.addresses_of(other.peer) == ()


async def test_a_bad_or_mismatched_address_is_dropped_and_the_provider_kept() -> None:
    node = serving()
    someone = Multiaddr("/ip4/10.0.0.1/tcp/4001/p2p/12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B").to_bytes()
    await node.handle(provide(PeerRecord(ASKER, (b"\xff\xff", someone, ADDRESS))))
    assert (await node.handle(GetProviders(MULTIHASH))).providers[0].addresses == (ADDRESS,)


async def test_of_2000_addresses_16_are_kept() -> None:
    node = serving()
    addresses = tuple(Multiaddr(f"/ip4/10.0.0.1/tcp/{port}").to_bytes() for port in range(1, 2001))
    for repeated in (1, 3):
        await node.handle(provide(*[PeerRecord(ASKER, addresses)] * repeated))
        (stored,) = await node.storage.get_providers(MULTIHASH, now_us=NOW_US)
        assert stored.addresses == addresses[:16]


async def test_a_provider_is_forgotten_when_its_time_is_over_unless_it_came_again() -> None:
    node = serving(DhtConfig(provider_ttl_s=10.0))
    await node.handle(provide(PeerRecord(ASKER, (ADDRESS,))))
    node.clock.time_us += 9 * US_PER_S
    await node.handle(provide(PeerRecord(ASKER, (ADDRESS,))))
    node.clock.time_us += 9 * US_PER_S
    assert len((await node.handle(GetProviders(MULTIHASH))).providers) == 1
    node.clock.time_us += 1 * US_PER_S
    assert (await node.handle(GetProviders(MULTIHASH))).providers == ()


async def test_a_provider_for_which_there_is_no_room_is_refused_and_this_node_itself_never_is() -> None:
    node = serving()
    node.storage.capacity.limits = Limits(max_providers=1)
    await node.handle(provide(PeerRecord(ASKER, (ADDRESS,))))
    other = PeerId(b"\x00\x05other")
    with pytest.raises(ValidationError, match="the store: 2 providers; the limit is 1"):
        await node.handle(provide(PeerRecord(other, (ADDRESS,))), asker=other)
    node.server.provided.add(MULTIHASH)
    reply = await node.handle(GetProviders(MULTIHASH))
    assert [each.peer for each in reply.providers] == [node.network.local, ASKER]
