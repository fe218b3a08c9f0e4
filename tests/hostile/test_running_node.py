"""A running node on loopback, attacked over real connections while another peer is served."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from random import Random

import pytest
import trio
from libp2p.abc import IHost, IMuxedStream
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamError

from prime_dht.config import DhtConfig, Mode, NodeConfig
from prime_dht.errors import RemoteProtocolError
from prime_dht.ids import Key
from prime_dht.net.hardening.parts import parts_of
from prime_dht.net.hardening.stream_guard import StreamGuard
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.identity import new_identity
from prime_dht.net.network import Handler
from prime_dht.net.offenders import Offenders, OffenderSettings, Standing
from prime_dht.net.overlay import Overlay
from prime_dht.node import PrimeDHT, open_node
from prime_dht.node.core import Node
from prime_dht.testing.hostile import Intruder, damaged, everything_from
from prime_dht.wire.calls import decode_call, encode_call
from prime_dht.wire.frames import MAX_FRAME_BYTES, FrameDecoder, encode_frame, encode_varint
from prime_dht.wire.kad import FindNode, GetValue, Ping, PutValue, Record, decode_request, encode_request

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
CONFIG = DhtConfig(mode=Mode.SERVER)
KAD, RPC = CONFIG.kad_protocol, CONFIG.rpc_protocol
TOLERANT = OffenderSettings(tolerated=10**9)
LASTING = OffenderSettings(atonement_s=600, back_off_s=600)

ATTACKS = 10_000
HALF_OPEN_AT_ONCE = 40
WARM_UP = 1_000
ATTACKERS = 10
SERVE_EVERY = 100


@dataclass(slots=True, kw_only=True)
class Attacked:
    """A node, its host and network, and somebody honest who uses it."""

    node: Node
    host: IHost
    overlay: Overlay
    honest: PrimeDHT
    served: int = 0

    async def serve(self) -> None:
        """Check that the honest peer can put and get."""
        self.served += 1
        key, value = f"k{self.served}", b"%d" % self.served
        receipt = await self.honest.put(key, value)
        assert self.node.peer_id in receipt.stored_by
        found = await self.honest.get(key, latest=True, quorum=2)
        assert found is not None
        assert found.value == value

    def streams(self) -> int:
        """Streams that peers have open to the node."""
        guard = parts_of(self.host)[1].common_stream_handler
        assert isinstance(guard, StreamGuard)
        return guard.total


@asynccontextmanager
async def attacked_node(
    settings: OffenderSettings, *, fast_transport: bool = True
) -> AsyncIterator[tuple[Attacked, Intruder]]:
    async with AsyncExitStack() as stack:
        host, other = [
            await stack.enter_async_context(
                open_host(HostSettings(key_pair=new_identity(), listen=(LOOPBACK,), fast_transport=is_fast))
            )
            for is_fast in (fast_transport, True)
        ]
        overlays: list[Overlay] = []

        def join(handler: Handler) -> Overlay:
            overlays.append(Overlay(host, CONFIG, handler, offenders=Offenders(settings)))
            return overlays[0]

        node = await stack.enter_async_context(Node(join, host.get_private_key(), CONFIG))
        honest = await stack.enter_async_context(
            open_node(NodeConfig(listen=(LOOPBACK,), peers=(node.addresses()[0],), dht=CONFIG))
        )
        await honest.bootstrap()
        attacked = Attacked(node=node, host=host, overlay=overlays[0], honest=honest)
        yield attacked, Intruder(other, host)


REQUESTS = [
    encode_request(request)
    for request in (
        FindNode(b"target"),
        GetValue(Key(b"/prime/k")),
        PutValue((Record(Key(b"/prime/k"), b"no entry set"),)),
        Ping(),
    )
]


def is_malformed(protocol: str, wire: bytes) -> bool:
    """Whether no request can be read of what comes first on a stream."""
    try:
        for body in FrameDecoder().feed(wire):
            decode_request(decode_call(body)[1] if protocol == RPC else body)
    except RemoteProtocolError:
        return True
    return False


def malformed(rng: Random) -> tuple[str, bytes]:
    """A protocol, and what breaks it."""
    while True:
        protocol = rng.choice((KAD, RPC))
        request = rng.choice(REQUESTS)
        frame = encode_frame(request if protocol == KAD else encode_call(0, request))
        wire = rng.choice(
            (
                damaged(frame, rng),
                encode_frame(damaged(request, rng)),
                encode_frame(rng.randbytes(rng.randint(0, 200))),
                encode_varint(MAX_FRAME_BYTES + rng.randint(1, 1 << 40)),
                b"\xff" * 9,
            )
        )
        if is_malformed(protocol, wire):
            return protocol, wire


def half_open(rng: Random) -> tuple[str, bytes]:
    """A protocol, and the beginning of a frame."""
    frame = encode_frame(encode_call(0, rng.choice(REQUESTS)))
    return rng.choice((KAD, RPC)), frame[: rng.randrange(len(frame))]


async def test_ten_thousand_malformed_frames_and_half_open_streams_leave_nothing_behind() -> None:
    rng = Random(1)
    breaches = 0
    with trio.fail_after(120):
        async with attacked_node(TOLERANT) as (attacked, intruder):
            await intruder.connect()

            async def attack(count: int) -> None:
                nonlocal breaches
                unfinished: deque[IMuxedStream] = deque()
                for number in range(count):
                    if number % SERVE_EVERY == 0:
                        await attacked.serve()
                    if rng.random() < 0.2:
                        unfinished.append(await intruder.send(*half_open(rng)))
                        if len(unfinished) > HALF_OPEN_AT_ONCE // ATTACKERS:
                            await unfinished.popleft().reset()
                    else:
                        breaches += 1
                        _, in_order = await everything_from(await intruder.send(*malformed(rng)))
                        assert not in_order, "the offender's stream is reset"
                for stream in unfinished:
                    await stream.reset()

            async def attack_at_once(count: int) -> None:
                async with trio.open_nursery() as nursery:
                    for _ in range(ATTACKERS):
                        nursery.start_soon(attack, count // ATTACKERS)
                while intruder.peer in attacked.overlay.server._peers:
                    await trio.lowlevel.checkpoint()
                gc.collect()

            await attack_at_once(WARM_UP)
            objects_before = len(gc.get_objects())
            await attack_at_once(ATTACKS - WARM_UP)
            # What the honest peer puts and gets meanwhile takes up to 2,000; one left by each attack would be 9,000.
            assert len(gc.get_objects()) - objects_before < 4_000
            assert attacked.served == ATTACKS // SERVE_EVERY
            assert attacked.overlay.server.offenders.offences == {intruder.peer: breaches}
            assert (await attacked.node.stats()).offences == breaches > ATTACKS * 3 // 4
            assert attacked.streams() < 10


async def offend(intruder: Intruder, times: int) -> None:
    for _ in range(times):
        await everything_from(await intruder.send(KAD, encode_frame(b"\xff")))


async def test_whoever_offends_ten_times_has_its_streams_reset_unread_and_others_are_served() -> None:
    with trio.fail_after(20):
        async with attacked_node(LASTING) as (attacked, intruder):
            await offend(intruder, 9)
            ping = encode_frame(encode_request(Ping()))
            stream = await intruder.send(KAD, ping)
            await stream.close()
            assert (await everything_from(stream))[1], "it is still answered"
            await offend(intruder, 1)
            for _ in range(100):
                assert not (await everything_from(await intruder.send(KAD, ping)))[1]
            assert attacked.overlay.server.requests["Ping"] == 1
            stats = await attacked.node.stats()
            assert (stats.offences, stats.backed_off) == (10, 1)
            assert intruder.is_connected
            await attacked.serve()


@pytest.mark.parametrize("fast_transport", [True, False])
async def test_whoever_was_backed_off_often_enough_loses_its_connection_whenever_it_comes_back(
    fast_transport: bool,
) -> None:
    with trio.fail_after(20):
        settings = replace(LASTING, disconnected_from=1)
        async with attacked_node(settings, fast_transport=fast_transport) as (attacked, intruder):
            await offend(intruder, 10)
            for _ in range(5):
                while intruder.is_connected:
                    await trio.lowlevel.checkpoint()
                try:
                    stream = await intruder.send(KAD, encode_frame(encode_request(Ping())))
                except MuxedStreamError:
                    continue  # the connection was closed before there was a stream
                assert not (await everything_from(stream))[1]
            assert attacked.overlay.server.requests["Ping"] == 0
            while attacked.overlay.is_connected(intruder.peer):
                await trio.lowlevel.checkpoint()
            await attacked.serve()


async def test_of_a_thousand_streams_64_are_kept_and_the_peer_is_backed_off_while_others_are_served() -> None:
    with trio.fail_after(20):
        async with attacked_node(LASTING) as (attacked, intruder):
            for _ in range(1_000):
                await intruder.send(KAD, b"\x05")
                assert attacked.streams() <= 130, "128 of the intruder, and the honest peer's"
            await attacked.serve()
            server = attacked.overlay.server
            assert server._peers[intruder.peer].streams == 64
            assert server.offenders.standing(intruder.peer, now_s=trio.current_time()) is Standing.BACKED_OFF


async def test_of_a_thousand_dials_no_more_are_open_than_the_limits_say_and_who_is_connected_is_served() -> None:
    with trio.fail_after(20):
        async with attacked_node(LASTING) as (attacked, intruder), AsyncExitStack() as stack:
            port = int(attacked.host.get_transport_addrs()[0].value_for_protocol("tcp"))
            refused = 0
            for _ in range(1_000):
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                if await stream.receive_some(1):  # the first byte of whom it would talk to
                    await stack.enter_async_context(stream)
                else:
                    refused += 1
                    await stream.aclose()
            assert refused == 1_000 - HostSettings(key_pair=new_identity()).max_half_open
            await attacked.serve()
            await stack.aclose()
            swarm = parts_of(attacked.host)[1]
            for _ in range(20):
                with suppress(SwarmException):  # the fifth and those behind it are closed, sooner or later
                    await intruder.connect()
                assert len(swarm.get_connections(ID(intruder.peer))) <= 4
            await attacked.serve()
