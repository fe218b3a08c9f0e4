"""Plain records of other namespaces, and providers."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import replace

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from multiaddr import Multiaddr
from trio.testing import MockClock

from prime_dht.config import DhtConfig
from prime_dht.entries.limits import Limits
from prime_dht.errors import ConfigError, LocalProtocolError, QueryError, ValidationError
from prime_dht.ids import Key, PeerId, TimestampUs, kad_key, peer_text
from prime_dht.net.addresses import address_text
from prime_dht.net.identity import peer_id_of
from prime_dht.net.network import Handler
from prime_dht.node import records
from prime_dht.node.core import Node
from prime_dht.node.records import ANNOUNCE_AGAIN_S, ANNOUNCED_IN_VAIN
from prime_dht.storage.base import PlainRecord
from prime_dht.testing.swarm import EPOCH_US, Swarm, open_swarm
from prime_dht.wire.kad import AddProvider, GetProviders, PeerRecord, Reply, Request, decode_reply, encode_reply

CONTENT = b"\x12\x20" + b"content".ljust(32, b".")


class Longest:
    """A validator for which the longest text of one letter is the best."""

    def validate(self, key: bytes, value: bytes) -> None:
        if len(set(value)) != 1:
            raise ValidationError("not of one letter")

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        return max(range(len(values)), key=lambda index: len(values[index]))


VALIDATORS = {"long": Longest()}
QUICK = DhtConfig(record_ttl_s=2 * 3600.0, provider_ttl_s=2 * 3600.0, record_republish_s=2400.0)
"""The proportions of the default, in hours instead of days."""


async def swarm_of(swarm: Swarm, size: int, *, config: DhtConfig = QUICK) -> list[Node]:
    first = await swarm.start(config=config, validators=VALIDATORS)
    for _ in range(size - 1):
        await (await swarm.start(via=[first], config=config, validators=VALIDATORS)).bootstrap()
    return swarm.nodes


def closest_peers(nodes: Sequence[Node], key: bytes, count: int) -> list[PeerId]:
    return sorted((node.peer_id for node in nodes), key=lambda peer: kad_key(peer) ^ kad_key(key))[:count]


async def record_at(swarm: Swarm, node: Node, key: bytes) -> bytes | None:
    record = await swarm.machine_of(node).disc.get_record(Key(key), now_us=0)
    return None if record is None else record.value


async def test_a_public_key_is_put_to_the_r_closest_and_got_by_anybody(autojump_clock: MockClock) -> None:
    def classical(request: Request, answer: bytes) -> bytes:
        return encode_reply(request, decode_reply(request, answer)._replace(replicates=False))

    async with open_swarm(seed=1, size=10) as swarm:
        pair = create_new_key_pair(bytes(32))
        key = b"/pk/" + peer_id_of(pair)
        swarm.world.lie(closest_peers(swarm.nodes[1:], key, 1)[0], classical)  # it keeps no entry sets
        receipt = await swarm.nodes[0].put_record(key, pair.public_key.serialize())
        assert set(receipt.stored_by) == set(closest_peers(swarm.nodes, key, 3))
        assert await swarm.nodes[9].get_record(key) == pair.public_key.serialize()
        other = create_new_key_pair(b"1" * 32).public_key.serialize()
        with pytest.raises(ValidationError, match="not the one its record's key names"):
            await swarm.nodes[0].put_record(key, other)


async def test_records_of_the_prime_namespace_or_of_none_known_are_refused(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (node,) = swarm.nodes
        for key in (b"/prime/k", b"/unknown/k", b"no namespace", b""):
            with pytest.raises(ValidationError):
                await node.put_record(key, b"a")
            with pytest.raises(ValidationError):
                await node.get_record(key)
        with pytest.raises(ConfigError):
            await swarm.start(validators={"prime": Longest()})


async def test_a_reader_gets_the_best_record_and_corrects_those_that_have_a_worse_one(
    autojump_clock: MockClock,
) -> None:
    """Entry correction; of what is not valid nothing is believed (scenario 26)."""
    async with open_swarm(seed=1) as swarm:
        nodes = await swarm_of(swarm, 6)
        key = b"/long/k"
        held = dict(zip(closest_peers(nodes, key, 3), (b"mixed", b"aa", b"aaaa"), strict=True))
        for node in nodes:
            if node.peer_id in held:
                record = PlainRecord(
                    key=Key(key),
                    value=held[node.peer_id],
                    received_at_us=TimestampUs(EPOCH_US),
                    expires_at_us=TimestampUs(2 * EPOCH_US),
                )
                await swarm.machine_of(node).disc.put_record(record, now_us=EPOCH_US)
        reader = next(node for node in nodes if node.peer_id not in held)
        assert await reader.get_record(key, quorum=3) == b"aaaa"
        await trio.sleep(1)
        assert {await record_at(swarm, node, key) for node in nodes if node.peer_id in held} == {b"aaaa"}


async def test_concurrent_puts_of_records_keep_the_best(autojump_clock: MockClock) -> None:
    """Scenario 27."""
    async with open_swarm(seed=1) as swarm:
        nodes = await swarm_of(swarm, 8)
        receipts = 0

        async def put(node: Node, length: int) -> None:
            nonlocal receipts
            try:
                await node.put_record(b"/long/k", b"a" * length)
            except QueryError:
                return  # a better one was there already at all replicas
            receipts += 1

        async with trio.open_nursery() as nursery:
            for length, node in enumerate(nodes, start=1):
                nursery.start_soon(put, node, length)
        assert receipts >= 1
        for node in nodes:
            assert await node.get_record(b"/long/k", quorum=3) == b"a" * 8


async def test_a_record_outlives_its_replicas_because_its_writer_republishes_it(autojump_clock: MockClock) -> None:
    """Scenario 15, second half, and 38."""
    quicker = replace(QUICK, record_ttl_s=QUICK.record_ttl_s / 6, record_republish_s=QUICK.record_republish_s / 6)
    async with open_swarm(seed=1) as swarm:
        nodes = await swarm_of(swarm, 8, config=quicker)
        writer = next(node for node in nodes if node.peer_id not in closest_peers(nodes, b"/long/k", 3))
        await writer.put_record(b"/long/k", b"aaa")
        for node in list(nodes):
            if node.peer_id in closest_peers(nodes, b"/long/k", 3) and node is not writer:
                await swarm.stop(node)
                break
        await trio.sleep(2.5 * quicker.record_ttl_s)
        assert await swarm.nodes[-1].get_record(b"/long/k") == b"aaa"
        await swarm.stop(writer)
        await trio.sleep(1.5 * quicker.record_ttl_s)
        assert await swarm.nodes[-1].get_record(b"/long/k") is None
        stats = [await swarm.machine_of(node).disc.stats() for node in swarm.nodes]
        assert all(one.records == 0 for one in stats), "and the disc space is reclaimed"


async def test_a_record_that_nobody_put_is_none_and_a_quorum_has_its_bounds(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1) as swarm:
        nodes = await swarm_of(swarm, 3)
        assert await nodes[0].get_record(b"/long/k") is None
        for quorum in (0, 4):
            with pytest.raises(ConfigError):
                await nodes[0].get_record(b"/long/k", quorum=quorum)


async def test_a_provider_is_announced_to_the_r_closest_and_stops(autojump_clock: MockClock) -> None:
    """Scenario 16."""
    async with open_swarm(seed=1, size=10, config=QUICK) as swarm:
        node = swarm.nodes[0]
        receipt = await node.provide(CONTENT)
        others = [other for other in swarm.nodes if other is not node]
        assert set(receipt.stored_by) == set(closest_peers(others, CONTENT, 3))
        (provider,) = await swarm.nodes[9].find_providers(CONTENT)
        assert provider.peer == node.peer_id
        assert provider.addresses == (swarm.address_of(node).split("/p2p/")[0],)
        await node.stop_providing(CONTENT)
        assert await swarm.machine_of(node).disc.get_providers(CONTENT, now_us=0) == []
        await trio.sleep(7300)
        assert await swarm.nodes[9].find_providers(CONTENT) == []
        assert [provider.peer for provider in await node.find_providers(CONTENT)] == []


async def test_providers_are_sought_until_as_many_are_found_as_asked_for(autojump_clock: MockClock) -> None:
    """Scenario 17."""
    async with open_swarm(seed=1, size=20) as swarm:
        for node in swarm.nodes[:12]:
            await node.provide(CONTENT)
        client = await swarm.join_client()
        sent = swarm.network_of(client).sent["GetProviders"]
        assert len(await client.find_providers(CONTENT, count=5)) == 5
        assert swarm.network_of(client).sent["GetProviders"] - sent <= 3
        assert len(await client.find_providers(CONTENT, count=50)) == 12
        assert len(list(client.find_provider_iter(CONTENT, 4))) == 4
        assert list(client.find_provider_iter(b"\x12\x20" + bytes(32), 4)) == []
        with pytest.raises(ValidationError):
            await client.find_providers(CONTENT, count=0)


async def test_of_a_provider_only_what_is_an_address_of_it_is_shown(autojump_clock: MockClock) -> None:
    """Whatever a server says: bytes that are no multiaddr, one of no text, another peer's."""
    async with open_swarm(seed=1, size=4) as swarm:
        await trio.sleep(20)
        node, provider, liar = swarm.nodes[0], swarm.nodes[1].peer_id, swarm.nodes[2].peer_id
        good = Multiaddr("/ip4/8.8.8.8/tcp/4001")
        others = good.encapsulate(Multiaddr(f"/p2p/{peer_text(liar)}"))
        told = [b"\x04\x08\x08\x08\x08\xff\xff", b"\x04\x08\x08\x08\x08*", others.to_bytes(), good.to_bytes()]

        def lie(request: Request, answer: bytes) -> bytes:
            if not isinstance(request, GetProviders):
                return answer
            reply = decode_reply(request, answer)
            return encode_reply(request, reply._replace(providers=(PeerRecord(provider, tuple(told)),)))

        for other in swarm.nodes[1:]:
            swarm.world.lie(other.peer_id, lie)
        (found,) = await node.find_providers(CONTENT)
        assert found.peer == provider
        at_hand = swarm.address_of(provider).split("/p2p/")[0]
        assert found.addresses == (at_hand, str(good))
        (heard,) = node.find_provider_iter(CONTENT, 5)
        assert tuple(map(str, heard.addrs)) == found.addresses


async def test_what_one_server_says_of_a_providers_addresses_does_not_hide_what_others_say(
    autojump_clock: MockClock,
) -> None:
    """Whether it names none, or more than anybody would read."""
    async with open_swarm(seed=1, size=8) as swarm:
        nearest = swarm.closest_to(CONTENT, 8)
        provider, reader = nearest[6:]
        await provider.provide(CONTENT)
        away = [Multiaddr(f"/ip4/9.9.9.{number}/tcp/1").to_bytes() for number in range(200)]
        for liar in nearest[:2]:
            for told in ((), tuple(away)):
                record = PeerRecord(provider.peer_id, told)

                def lie(request: Request, answer: bytes, record: PeerRecord = record) -> bytes:
                    if not isinstance(request, GetProviders):
                        return answer
                    return encode_reply(request, decode_reply(request, answer)._replace(providers=(record,)))

                swarm.world.lie(liar.peer_id, lie)
                client = await swarm.join_client(via=reader)
                for count in (1, 20):
                    (found,) = await client.find_providers(CONTENT, count=count)
                    assert swarm.address_of(provider).split("/p2p/")[0] in found.addresses
                    assert len(found.addresses) <= 100
            swarm.world.lie(liar.peer_id, None)


@pytest.mark.parametrize("servers", [3, 12])
async def test_of_what_servers_say_of_a_providers_addresses_each_has_its_share(
    servers: int, autojump_clock: MockClock
) -> None:
    """Of what is shown, and of the few that are dialled: a late liar displaces nothing."""
    async with open_swarm(seed=1, size=servers) as swarm:
        provider = peer_id_of(create_new_key_pair(bytes(32)))
        said: list[list[str]] = []
        for number, liar in enumerate(swarm.nodes):
            away = [Multiaddr(f"/ip4/9.9.{number}.{host}/tcp/1") for host in range(16)]
            said.append([str(address) for address in away])
            record = PeerRecord(provider, tuple(address.to_bytes() for address in away))

            def lie(request: Request, answer: bytes, record: PeerRecord = record) -> bytes:
                if not isinstance(request, GetProviders):
                    return answer
                return encode_reply(request, decode_reply(request, answer)._replace(providers=(record,) * 64))

            swarm.world.lie(liar.peer_id, lie)
        client = await swarm.join_client()
        (found,) = await client.find_providers(CONTENT)
        each = 8 if servers == 3 else 2
        assert set(found.addresses) >= {address for texts in said for address in texts[:each]}
        assert len(found.addresses) <= 48
        dialled = swarm.network_of(client).addresses_of(provider)
        assert set(map(address_text, dialled)) >= {texts[0] for texts in said}


async def test_a_server_that_reaches_nobody_does_not_say_that_there_is_nothing(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        key = b"/pk/" + peer_id_of(create_new_key_pair(bytes(32)))
        reader, *others = swarm.nodes
        assert await reader.get_record(key) is None
        assert await reader.find_providers(CONTENT) == []
        swarm.world.partition([reader.peer_id], [node.peer_id for node in others])
        for _ in range(2):
            with pytest.raises(QueryError, match="nobody that could be asked answered"):
                await reader.get_record(key)
            with pytest.raises(QueryError, match="nobody that could be asked answered"):
                await reader.find_providers(CONTENT)
            await trio.sleep(60)


async def test_the_first_of_its_swarm_says_that_there_is_nothing(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (node,) = swarm.nodes
        assert await node.get_record(b"/pk/" + peer_id_of(create_new_key_pair(bytes(32)))) is None
        assert await node.find_providers(CONTENT) == []


async def test_what_is_provided_before_the_node_has_joined_is_announced_within_two_minutes(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node = await swarm.start(via=[swarm.nodes[0]])
        receipt = await node.provide(CONTENT)
        assert receipt.stored_by == ()
        await trio.sleep(120)
        for other in swarm.nodes[:6]:
            (found,) = await other.find_providers(CONTENT)
            assert found.peer == node.peer_id
        sent = swarm.network_of(node).sent["AddProvider"]
        await trio.sleep(600)
        assert swarm.network_of(node).sent["AddProvider"] == sent, "once somebody took it, until it is due again"


async def test_what_is_withdrawn_before_anybody_took_it_is_not_announced(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node = await swarm.start(via=[swarm.nodes[0]])
        await node.provide(CONTENT)
        await node.stop_providing(CONTENT)
        await trio.sleep(300)
        assert swarm.network_of(node).sent["AddProvider"] == 0


async def test_of_what_nobody_takes_a_few_are_announced_a_minute_each_in_turn(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        asked: list[bytes] = []
        for server in swarm.nodes:
            monkeypatch.setattr(
                swarm.network_of(server), "_handler", refusing(swarm.network_of(server)._handler, asked)
            )
        node = await swarm.join()
        contents = [b"\x12\x20" + bytes([number]) * 32 for number in range(40)]
        for content in contents:
            assert (await node.provide(content)).stored_by == ()
        asked.clear()
        await trio.sleep(ANNOUNCE_AGAIN_S)
        assert len(set(asked)) == ANNOUNCED_IN_VAIN
        await trio.sleep(2 * ANNOUNCE_AGAIN_S)
        assert set(asked) == set(contents)


async def test_what_is_provided_is_announced_again_in_an_order_that_is_the_same_in_each_process(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=2, config=QUICK) as swarm:
        node, network = swarm.nodes[0], swarm.network_of(swarm.nodes[1])
        contents = [b"\x12\x20" + bytes([number]) * 32 for number in range(40)]
        for content in contents:
            await node.provide(content)
        announced: list[bytes] = []
        handle = network._handler

        def note(peer: PeerId, request: Request) -> Reply | Awaitable[Reply]:
            if isinstance(request, AddProvider):
                announced.append(request.multihash)
            return handle(peer, request)

        monkeypatch.setattr(network, "_handler", note)
        await trio.sleep(1.5 * QUICK.record_republish_s)
        assert announced == contents


def refusing(handle: Handler, asked: list[bytes]) -> Handler:
    """A server's handler, but that it notes announcements, and takes none."""

    def answer(peer: PeerId, request: Request) -> Reply | Awaitable[Reply]:
        if isinstance(request, AddProvider):
            asked.append(request.multihash)
            raise ValidationError("no room")
        return handle(peer, request)

    return answer


async def test_forty_nodes_each_find_every_provider(autojump_clock: MockClock) -> None:
    """Scenario 28."""
    async with open_swarm(seed=1, size=40) as swarm:
        contents = [b"\x12\x20" + bytes([number]) * 32 for number in range(40)]
        for node, content in zip(swarm.nodes, contents, strict=True):
            await node.provide(content)
        for node in swarm.nodes:
            for provider, content in zip(swarm.nodes, contents, strict=True):
                (found,) = await node.find_providers(content, count=1)
                assert found.peer == provider.peer_id


async def test_expired_providers_go_and_those_that_are_announced_again_stay(autojump_clock: MockClock) -> None:
    """Scenario 29."""
    async with open_swarm(seed=1, size=6, config=QUICK) as swarm:
        stays, goes = swarm.nodes[:2]
        await stays.provide(CONTENT)
        await goes.provide(CONTENT)
        await swarm.stop(goes)
        await trio.sleep(9000)
        reader = swarm.nodes[-1]
        assert [provider.peer for provider in await reader.find_providers(CONTENT)] == [stays.peer_id]
        for node in swarm.nodes:
            assert (await swarm.machine_of(node).disc.stats()).providers <= 1


async def test_servers_that_have_no_room_say_so_and_what_a_node_provides_itself_needs_none(
    autojump_clock: MockClock,
) -> None:
    config = replace(QUICK, limits=Limits(max_records=1, max_providers=1))
    async with open_swarm(seed=1) as swarm:
        one, other, _ = await swarm_of(swarm, 3, config=config)
        assert (await one.put_record(b"/long/a", b"a")).failed == ()
        with pytest.raises(QueryError, match="the store: 2 plain records; the limit is 1"):
            await other.put_record(b"/long/b", b"a")
        contents = [b"\x12\x20" + bytes([number]) * 32 for number in range(3)]
        receipts = [await one.provide(content) for content in contents]
        assert receipts[0].failed == ()
        for receipt in receipts[1:]:
            assert (receipt.stored_by, len(receipt.failed)) == ((), 2)
        for content in contents:
            assert [provider.peer for provider in await one.find_providers(content, count=1)] == [one.peer_id]


async def test_what_is_provided_without_an_announcement_is_found_here_and_announced_later(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=5, config=QUICK) as swarm:
        node = swarm.nodes[0]
        sent = swarm.network_of(node).sent.total()
        receipt = await node.provide(CONTENT, announce=False)
        assert receipt.stored_by == ()
        assert swarm.network_of(node).sent.total() == sent
        assert [provider.peer for provider in await node.find_providers(CONTENT, count=1)] == [node.peer_id]
        await trio.sleep(3000)
        assert [provider.peer for provider in await swarm.nodes[3].find_providers(CONTENT)] == [node.peer_id]


async def test_a_node_provides_and_keeps_alive_only_so_much_and_what_it_does_already_as_often_as_asked(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_PROVIDED", 2)
    async with open_swarm(seed=1, size=0) as swarm:
        node, _ = await swarm_of(swarm, 2)
        multihashes = [CONTENT[:-1] + bytes([number]) for number in range(3)]
        keys = [b"/long/%d" % number for number in range(3)]
        for number in (0, 1, 0):
            await node.provide(multihashes[number])
            await node.put_record(keys[number], b"aa")
        with pytest.raises(ValidationError, match="at most 2 multihashes"):
            await node.provide(multihashes[2])
        with pytest.raises(ValidationError, match="at most 2 records"):
            await node.put_record(keys[2], b"aa")
        await node.stop_providing(multihashes[0])
        await node.provide(multihashes[2])


async def test_a_node_that_does_not_listen_cannot_provide(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        client = await swarm.join_client()
        with pytest.raises(LocalProtocolError, match="does not listen"):
            await client.provide(CONTENT)


async def test_who_waits_for_an_announcement_that_the_nodes_end_cuts_short_is_told(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        node = swarm.nodes[0]
        for other in swarm.nodes[1:]:
            swarm.world.silence(other.peer_id)
        provision = node.provide(CONTENT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swarm.stop, node)
            with trio.fail_after(60), pytest.raises(LocalProtocolError, match="closed before"):
                await provision


@pytest.mark.parametrize("wrong", ["not a cid", b"", b"\x00", b"\x00\x60" + bytes(96), 5])
async def test_what_is_neither_a_cid_nor_a_multihash_is_refused(wrong: bytes, autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        with pytest.raises(ValidationError):
            swarm.nodes[0].provide(wrong)
        with pytest.raises(ValidationError):
            await swarm.nodes[0].find_providers(wrong)
