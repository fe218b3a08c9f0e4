"""Sync over real streams, and what a node does with peers that misuse them."""

from __future__ import annotations

import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import StreamFailure
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

from prime_dht import NodeConfig, PrimeDHT, open_node
from prime_dht.events import SyncFinished
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.identity import new_identity
from prime_dht.net.sync_streams import SERVED_OF_PEER
from prime_dht.node.feed import Subscription
from prime_dht.sync.limits import MAX_MESSAGE_BYTES
from prime_dht.wire.frames import encode_frame, encode_varint

CONFIG = NodeConfig(listen=("/ip4/127.0.0.1/tcp/0",))
PROTOCOL = TProtocol("/prime/sync/1.0.0")
TTL_S = 3600.0


async def stream_to(node: PrimeDHT, host: IHost) -> INetStream:
    info = info_from_p2p_addr(Multiaddr(node.addresses()[0]))
    await host.connect(info)
    return await host.new_stream(info.peer_id, [PROTOCOL])


async def is_reset(stream: INetStream) -> bool:
    try:
        with trio.fail_after(5):
            return await stream.read(1) == b""
    except StreamError:
        return True


async def is_refused(node: PrimeDHT, host: IHost) -> bool:
    """Whether one more stream is reset: while it is negotiated, or right behind."""
    try:
        return await is_reset(await stream_to(node, host))
    except StreamFailure:
        return True


async def moved(events: Subscription) -> SyncFinished:
    """The first round that moved anything."""
    with trio.fail_after(30):
        while True:
            event = await anext(events)
            if isinstance(event, SyncFinished) and event.stored:
                return event


async def test_two_nodes_over_tcp_that_have_met_end_with_the_join_and_hold_all_sectors() -> None:
    async with open_node(CONFIG) as one, open_node(CONFIG) as other:
        for number in range(12):
            await (one, other)[number % 2].put(f"key {number}", b"value", ttl=TTL_S)
        with one.subscribe() as of_one, other.subscribe() as of_other:
            await other.add_peer(one.addresses()[0])
            here, there = await moved(of_one), await moved(of_other)
        assert (here.ending, here.stored, here.sent) == ("equal", 6, 6)
        assert (there.ending, there.stored, there.sent) == ("equal", 6, 6)
        assert here.begun_here is not there.begun_here
        assert (here.bytes_received, here.bytes_sent) == (there.bytes_sent, there.bytes_received)
        for node in (one, other):
            assert (await node.health()).entries == 12
        async with open_node(NodeConfig(listen=())) as client:
            await client.add_peer(one.addresses()[0])
            outcome = (await client.sync(one.peer_id, dry_run=True)).outcome
            assert (outcome.only_ours, outcome.only_theirs, outcome.stored) == (0, 12, 0)
            assert outcome.partner_held is not None
            assert len(outcome.partner_held) == 512


async def test_what_is_no_opening_is_an_offence_and_others_are_served_on() -> None:
    identity = HostSettings(key_pair=new_identity(), listen=())
    async with open_node(CONFIG) as node, open_host(identity) as stranger, open_node(CONFIG) as other:
        for sent in (encode_frame(b"no message"), encode_frame(b""), encode_varint(MAX_MESSAGE_BYTES + 1)):
            before = node._network.counters().offences
            stream = await stream_to(node, stranger)
            await stream.write(sent)
            assert await is_reset(stream)
            assert node._network.counters().offences == before + 1
        await other.add_peer(node.addresses()[0])
        assert str((await other.sync(node.peer_id)).outcome) == "equal"


async def test_a_peer_may_keep_only_so_many_rounds_waiting() -> None:
    identity = HostSettings(key_pair=new_identity(), listen=())
    async with open_node(CONFIG) as node, open_host(identity) as stranger:
        streams = [await stream_to(node, stranger) for _ in range(SERVED_OF_PEER)]
        assert await is_refused(node, stranger)
        await streams[0].write(encode_frame(b"no message"))
        assert await is_reset(streams[0])


async def test_a_node_that_is_still_reading_its_store_says_so_and_holds_it_against_nobody() -> None:
    async with open_node(CONFIG) as node, open_node(NodeConfig(listen=())) as client:
        await client.add_peer(node.addresses()[0])
        partition, node._replica._partition = node._replica.partition, None
        for _ in range(20):
            assert str((await client.sync(node.peer_id)).outcome) == "refused(not ready)"
        node._replica._partition = partition
        assert str((await client.sync(node.peer_id)).outcome) == "equal"
        assert not node._network.counters().offences
        (memory,) = node._syncing._scheduled()._memories.values()
        assert (memory.failures, len(memory.accepted_us)) == (0, 1)


async def test_a_client_does_not_take_part_in_rounds_but_can_begin_one() -> None:
    async with open_node(CONFIG) as node, open_node(NodeConfig(listen=())) as client:
        await node.put("k", b"value", ttl=TTL_S)
        await client.add_peer(node.addresses()[0])
        report = await client.sync(node.peer_id)
        assert (str(report.outcome), report.outcome.stored) == ("equal", 1)
        assert PROTOCOL not in client._host.get_mux().get_protocols()
