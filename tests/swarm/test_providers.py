"""Finding providers where some servers lie, and others have forgotten."""

from __future__ import annotations

from libp2p.crypto.ed25519 import create_new_key_pair
from multiaddr import Multiaddr
from trio.testing import MockClock

from prime_dht.ids import kad_key
from prime_dht.net.identity import peer_id_of
from prime_dht.testing.swarm import open_swarm
from prime_dht.wire.kad import GetProviders, PeerRecord, Request, decode_reply, encode_reply

CONTENT = b"\x12\x20" + b"content".ljust(32, b".")


async def test_a_server_that_makes_providers_up_hides_none_that_others_name(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=20) as swarm:
        nearest = sorted(swarm.nodes, key=lambda node: kad_key(node.peer_id) ^ kad_key(CONTENT))
        await nearest[-1].provide(CONTENT)
        made_up = [peer_id_of(create_new_key_pair(b"%032d" % number)) for number in range(64)]
        records = tuple(PeerRecord(peer, (Multiaddr("/ip4/9.9.9.9/tcp/1").to_bytes(),)) for peer in made_up)

        def lie(request: Request, answer: bytes) -> bytes:
            if not isinstance(request, GetProviders):
                return answer
            return encode_reply(request, decode_reply(request, answer)._replace(providers=records))

        swarm.world.lie(nearest[0].peer_id, lie)
        for other in nearest[1:3]:
            swarm.world.slow(other.peer_id, 10.0)  # the liar is first
        found = await nearest[10].find_providers(CONTENT)
        assert len(found) == 20
        assert nearest[-1].peer_id in {one.peer for one in found}
        assert len(swarm.network_of(nearest[10]).addresses_of(made_up[50])) == 0, "of who is not shown nothing is kept"


async def test_where_one_server_alone_names_a_provider_it_is_found_when_the_closest_have_answered(
    autojump_clock: MockClock,
) -> None:
    def forget(request: Request, answer: bytes) -> bytes:
        if not isinstance(request, GetProviders):
            return answer
        return encode_reply(request, decode_reply(request, answer)._replace(providers=()))

    async with open_swarm(seed=1, size=20) as swarm:
        nearest = sorted(swarm.nodes, key=lambda node: kad_key(node.peer_id) ^ kad_key(CONTENT))
        await nearest[-1].provide(CONTENT)
        for other in nearest[1:3]:
            swarm.world.lie(other.peer_id, forget)
        sent = swarm.network_of(nearest[10]).sent
        sent_before = sent.total()
        (found,) = await nearest[10].find_providers(CONTENT, count=1)
        assert found.peer == nearest[-1].peer_id
        assert sent.total() - sent_before <= 6, "the three closest, and three beside them"
