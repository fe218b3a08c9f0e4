"""Peers that misuse the streams of rounds, against a node on real sockets: what cannot be done to one in memory.

The clock is a mock that jumps to the next deadline when nothing happens, so silence takes no time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.host.exceptions import StreamFailure
from libp2p.network.stream.exceptions import StreamError
from multiaddr import Multiaddr
from trio.testing import MockClock

from prime_dht.background import background_nursery
from prime_dht.config import DhtConfig, Mode, NodeConfig
from prime_dht.errors import LocalProtocolError, QueryError
from prime_dht.ids import PeerId
from prime_dht.net.hardening.stream_guard import LINGER_S
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.identity import new_identity
from prime_dht.net.network import Conversation
from prime_dht.net.overlay import Overlay
from prime_dht.net.sync_streams import SERVED_IN_ALL, SERVED_OF_PEER
from prime_dht.node import PrimeDHT, open_node
from prime_dht.node.clock import SystemClock
from prime_dht.node.rounds import OPENING_TIMEOUT_S, STAGE_TIMEOUT_S
from prime_dht.sync.actions import Ending
from prime_dht.sync.limits import MAX_MESSAGE_BYTES
from prime_dht.sync.messages import Turn
from prime_dht.testing.hostile_rounds import Rogue, signed_entries
from prime_dht.wire.frames import encode_frame, encode_varint
from prime_dht.wire.kad import Reply, Request

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
CONFIG = DhtConfig(mode=Mode.SERVER)
HALF_OPEN = 200


@pytest.fixture
def patient_clock(mock_clock: MockClock) -> MockClock:
    """A clock that jumps to the next deadline when nothing has happened, not even on a socket, for a little while."""
    mock_clock.autojump_threshold = 0.05
    return mock_clock


@dataclass(slots=True, kw_only=True)
class Scene:
    """A node that is attacked, an honest one, and where more rogues come from."""

    node: PrimeDHT
    honest: PrimeDHT
    stack: AsyncExitStack
    nursery: trio.Nursery

    @property
    def offences(self) -> int:
        return self.node._network.counters().offences

    @property
    def served(self) -> int:
        """Streams of rounds that the node serves now."""
        network = self.node._network
        assert isinstance(network, Overlay)
        return len(network._sync._places)

    async def stored(self) -> set[bytes]:
        page = await self.node._syncing._rounds._storage.scan_ops()
        return {op_id.tobytes() for op_id in page.op_ids}

    async def rogue(self) -> tuple[Rogue, Overlay]:
        """A rogue with an op of its own, and its host, which is no member of the swarm."""
        host = await self.stack.enter_async_context(
            open_host(HostSettings(key_pair=new_identity(), listen=(LOOPBACK,)))
        )
        overlay = Overlay(host, CONFIG, serves_nothing_else)
        await self.nursery.start(overlay.run)
        for one, other, addresses in (
            (overlay, self.node.peer_id, [Multiaddr(text) for text in self.node.addresses()]),
            (self.node._network, overlay.local, host.get_transport_addrs()),
        ):
            one.learn_addresses(other, [address.to_bytes() for address in addresses], source="manual")
        now_us = SystemClock().now_us()
        return Rogue(now_us=now_us, entries=signed_entries(1, now_us=now_us, name=overlay.local.hex())), overlay

    async def is_synced_with(self) -> bool:
        """Whether an honest round with the node goes as it should."""
        return (await self.honest.sync(self.node.peer_id)).outcome.ending is Ending.EQUAL


async def serves_nothing_else(_peer: PeerId, _request: Request) -> Reply:
    raise LocalProtocolError("rogues speak of sync alone")


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with (
        open_node(NodeConfig(listen=(LOOPBACK,), dht=CONFIG)) as node,
        open_node(NodeConfig(listen=(LOOPBACK,), peers=(node.addresses()[0],), dht=CONFIG)) as honest,
        background_nursery() as nursery,
        AsyncExitStack() as stack,
    ):
        await honest.bootstrap()
        yield Scene(node=node, honest=honest, stack=stack, nursery=nursery)


async def is_over(stream: INetStream) -> bool:
    """Wait until the node ends a stream."""
    try:
        while await stream.read(65_536):
            pass
    except StreamError:
        pass
    return True


async def crawl(stream: INetStream, data: bytes, *, every_s: float) -> int:
    """Send one byte after the other until the stream is gone; returns how many were sent."""
    for sent in range(len(data)):
        try:
            await stream.write(data[sent : sent + 1])
        except StreamError:
            return sent
        await trio.sleep(every_s)
    return len(data)


async def test_an_opening_that_comes_byte_by_byte_is_given_up_and_its_sender_charged(patient_clock: MockClock) -> None:
    async with scene() as made:
        rogue, overlay = await made.rogue()
        opening = encode_frame(rogue.codec.encode(rogue.opening()))
        stream = await overlay._open_sync_stream(made.node.peer_id)
        began_at_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crawl_until, stream, opening, 1.0)
            assert await made.is_synced_with()
        assert trio.current_time() - began_at_s < OPENING_TIMEOUT_S + 2
        assert (made.offences, made.served) == (1, 0)


async def crawl_until(stream: INetStream, data: bytes, every_s: float) -> None:
    assert await crawl(stream, data, every_s=every_s) < len(data)


async def test_a_turn_that_comes_byte_by_byte_is_given_up_and_changes_nothing(patient_clock: MockClock) -> None:
    async with scene() as made:
        rogue, overlay = await made.rogue()
        before = await made.stored()
        stream = await overlay._open_sync_stream(made.node.peer_id)
        await stream.write(encode_frame(rogue.codec.encode(rogue.opening())))
        assert await stream.read(65_536)
        began_at_s = trio.current_time()
        turn = encode_frame(rogue.codec.encode(Turn(entries=tuple(rogue.party.entries.values()))))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crawl_until, stream, turn, 1.0)
            await trio.sleep(5)
            assert await made.is_synced_with()
        assert trio.current_time() - began_at_s < STAGE_TIMEOUT_S + LINGER_S + 2
        assert (made.offences, made.served) == (1, 0)
        assert await made.stored() == before


async def test_a_turn_that_is_slow_is_heard_all_the_same(patient_clock: MockClock) -> None:
    async with scene() as made:
        rogue, overlay = await made.rogue()
        stream = await overlay._open_sync_stream(made.node.peer_id)
        await stream.write(encode_frame(rogue.codec.encode(rogue.opening())))
        assert await stream.read(65_536)
        turn = encode_frame(rogue.codec.encode(Turn(entries=tuple(rogue.party.entries.values()))))
        await stream.write(turn[:100])
        await trio.sleep(STAGE_TIMEOUT_S - 5)
        await stream.write(turn[100:])
        assert await is_over(stream)
        assert rogue.party.op_ids <= await made.stored()
        assert made.offences == 0


@pytest.mark.parametrize(
    "sent",
    [
        encode_frame(b"no message"),
        encode_varint(MAX_MESSAGE_BYTES + 1),
        b"\xff" * 10,
    ],
    ids=["garbage", "oversize", "a length without an end"],
)
async def test_what_is_no_turn_ends_the_round_at_once_and_changes_nothing(
    patient_clock: MockClock, sent: bytes
) -> None:
    async with scene() as made:
        rogue, overlay = await made.rogue()
        before = await made.stored()
        stream = await overlay._open_sync_stream(made.node.peer_id)
        await stream.write(encode_frame(rogue.codec.encode(rogue.opening())))
        assert await stream.read(65_536)
        began_at_s = trio.current_time()
        await stream.write(sent)
        assert await is_over(stream)
        assert trio.current_time() - began_at_s < 1
        assert (made.offences, made.served) == (1, 0)
        assert await made.stored() == before
        assert await made.is_synced_with()


@pytest.mark.parametrize(("is_begun_by_node", "stages"), [(True, [0]), (False, [0, 1])])
async def test_at_whatever_stage_a_peer_falls_silent_the_round_ends(
    patient_clock: MockClock, is_begun_by_node: bool, stages: list[int]
) -> None:
    async with scene() as made:
        for stage in stages:
            rogue, overlay = await made.rogue()
            before, offences = await made.stored(), made.offences

            async def fall_silent(conversation: Conversation, rogue: Rogue = rogue, stage: int = stage) -> None:
                play = rogue.follow_suit if is_begun_by_node else rogue.begin
                await play(conversation, messages=stage)
                await drained(conversation)

            began_at_s = trio.current_time()
            if is_begun_by_node:
                overlay.serve_sync(fall_silent)
                overlay.mount(as_server=True)
                assert (await made.node.sync(overlay.local)).outcome.ending is Ending.FAILED
            else:
                async with overlay.converse(made.node.peer_id, timeout_s=5) as conversation:
                    await fall_silent(conversation)
            assert trio.current_time() - began_at_s < STAGE_TIMEOUT_S + 2
            assert made.offences == offences + 1
            assert before <= await made.stored() <= before | rogue.party.op_ids
            assert await made.is_synced_with()


async def drained(conversation: Conversation) -> None:
    """Read, and say nothing, until the other ends the stream."""
    try:
        while await conversation.receive() is not None:
            pass
    except QueryError:
        pass


async def test_of_many_half_open_streams_of_a_peer_a_few_are_waited_for(patient_clock: MockClock) -> None:
    async with scene() as made:
        _, overlay = await made.rogue()
        streams: list[INetStream] = []
        for _ in range(HALF_OPEN):
            with suppress(QueryError, StreamFailure):  # reset while it is negotiated, or right behind
                streams.append(await overlay._open_sync_stream(made.node.peer_id))
            assert made.served <= SERVED_OF_PEER
        assert await made.is_synced_with()
        for stream in streams:
            assert await is_over(stream)
        assert (made.offences, made.served) == (SERVED_OF_PEER, 0)


async def test_half_open_streams_of_peers_that_take_all_places_hold_up_nobody_else(patient_clock: MockClock) -> None:
    async with scene() as made:
        rogues = [(await made.rogue())[1] for _ in range(SERVED_IN_ALL // SERVED_OF_PEER)]
        for overlay in rogues:
            for _ in range(SERVED_OF_PEER):
                await overlay._open_sync_stream(made.node.peer_id)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert made.served == SERVED_IN_ALL
        assert await made.is_synced_with()
        assert made.offences == 0
        await trio.sleep(OPENING_TIMEOUT_S + 1)
        assert (made.served, made.offences) == (0, SERVED_IN_ALL - 1)
