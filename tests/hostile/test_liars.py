"""Peers that answer, but not the truth: a swarm stores and finds its values among them all the same.

The tables are small, so that every operation needs lookups, in which the liars have their say: they are in everybody's
table. A liar is asked, and believed as far as it takes to find out. Where most replicas of a key are liars a put is not
acknowledged, and says so; here at most one of three is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from random import Random

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from multiaddr import Multiaddr
from trio.testing import MockClock

from prime_dht.config import DhtConfig
from prime_dht.errors import QueryError
from prime_dht.ids import PeerId, kad_key, wire_key
from prime_dht.net.address_book import BookSettings
from prime_dht.net.addresses import Reach, reach_of
from prime_dht.net.identity import peer_id_of
from prime_dht.net.offenders import OffenderSettings
from prime_dht.node.core import Node
from prime_dht.pb import kad_pb2 as pb
from prime_dht.testing.hostile import Liar, Lie, damaged
from prime_dht.testing.swarm import Swarm, open_swarm
from prime_dht.wire.kad import FindNode, PeerRecord, Reply, Request, encode_reply

PUBLIC = Multiaddr("/ip4/203.0.113.7/tcp/4001").to_bytes()
INVENTED = 10_000
SMALL_TABLES = DhtConfig(k_bucket_size=5)
MAX_REQUESTS = 100
"""Of a put or a get and what else its node does meanwhile."""


def nobody(number: int) -> PeerId:
    """A peer id that nobody has."""
    return PeerId(b"\x12\x20" + number.to_bytes(32, "big"))


def naming(request: Request, peers: Iterator[tuple[PeerId, list[bytes]]]) -> bytes:
    """A reply with any number of peers, whatever an honest node would leave out."""
    message = pb.Message.FromString(encode_reply(request, Reply(replicates=True)))
    for peer, addresses in peers:
        message.closerPeers.add(id=peer, addrs=addresses)
    return message.SerializeToString()


def ten_thousand_that_do_not_exist(request: Request) -> bytes:
    return naming(request, ((nobody(number), [PUBLIC]) for number in range(INVENTED)))


def one_many_times(request: Request) -> bytes:
    return naming(request, ((nobody(0), [PUBLIC]) for _ in range(64)))


def all_beside_the_target(request: Request) -> bytes:
    """Ever others that are closer than anybody honest, in one provider's network."""
    near = (number for number in count() if kad_key(nobody(number)) >> 248 == 0)
    return naming(request, ((nobody(next(near)), [PUBLIC]) for _ in range(20)))


def addresses_of_our_own_network(request: Request) -> bytes:
    texts = ("/ip4/127.0.0.1/tcp/22", "/ip4/10.0.0.1/tcp/6379", "/ip4/169.254.169.254/tcp/80", "/ip6/::1/tcp/22")
    inside = [Multiaddr(text).to_bytes() for text in texts]
    return naming(request, ((nobody(number), inside) for number in range(20)))


def addresses_of_garbage(request: Request) -> bytes:
    rng = Random(1)
    return naming(request, ((nobody(number), [damaged(PUBLIC, rng) for _ in range(16)]) for number in range(20)))


def one_at_ten_thousand_addresses(request: Request) -> bytes:
    addresses = [PUBLIC[:-2] + port.to_bytes(2, "big") for port in range(1, INVENTED + 1)]
    return naming(request, iter([(nobody(0), addresses)]))


def garbage(request: Request) -> bytes:
    return b"\xff\xff\xff"


def an_answer_to_another_request(request: Request) -> bytes:
    return encode_reply(FindNode(b"another"), Reply(replicates=True))


def no_status(request: Request) -> bytes:
    return encode_reply(request, Reply(replicates=True))


def nothing(request: Request) -> None:
    return None


LIES: list[Callable[[Request], bytes | None]] = [
    ten_thousand_that_do_not_exist,
    one_many_times,
    all_beside_the_target,
    addresses_of_our_own_network,
    addresses_of_garbage,
    one_at_ten_thousand_addresses,
    garbage,
    no_status,
    an_answer_to_another_request,
    nothing,
]


def truthful_about_itself(lie: Lie, liar: PeerId, address: bytes) -> Lie:
    """Nobody would ask a peer that did not answer when it is probed."""

    def answer(request: Request) -> bytes | None:
        if isinstance(request, FindNode) and request.target == liar:
            return encode_reply(request, Reply(closer=(PeerRecord(liar, (address,)),), replicates=True))
        return lie(request)

    return answer


def keys_with_two_honest_replicas(swarm: Swarm, liars: list[Liar], number: int) -> Iterator[str]:
    return islice((key for key in map("k{}".format, count()) if lying_replicas(swarm, liars, key) < 2), number)


def lying_replicas(swarm: Swarm, liars: list[Liar], key: str) -> int:
    peers = {kad_key(peer): peer for peer in (*(node.peer_id for node in swarm.nodes), *(liar.local for liar in liars))}
    lying = {liar.local for liar in liars}
    target = kad_key(wire_key(key))
    return sum(peers[place] in lying for place in sorted(peers, key=lambda place: place ^ target)[:3])


async def start_liars(swarm: Swarm, nursery: trio.Nursery, lie: Lie, number: int) -> list[Liar]:
    """Liars in every table of the swarm."""
    liars = []
    for seed in range(number):
        peer = peer_id_of(create_new_key_pair(bytes([seed]) * 32))
        address = swarm.world.address_of(peer)
        liar = Liar(swarm.world, peer, truthful_about_itself(lie, peer, address))
        await nursery.start(liar.run)
        liar.mount(as_server=True)
        for node in swarm.nodes:
            await node.add_peer(swarm.address_of(peer))
        liars.append(liar)
    return liars


def assert_little_is_held(swarm: Swarm, node: Node, liars: list[Liar]) -> None:
    exist = {other.peer_id for other in swarm.nodes} | {liar.local for liar in liars}
    assert {status.peer for status in node.peers()} <= exist
    network = swarm.network_of(node)
    assert len(network._book) <= BookSettings().max_peers
    for peer in (*exist, *map(nobody, range(20))):
        addresses = network.addresses_of(peer)
        assert len(addresses) <= BookSettings().max_addresses_per_peer
        assert all(reach_of(address) is Reach.INTERNET for address in addresses), "nobody in this world lives elsewhere"


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
async def test_among_liars_values_are_stored_and_found_in_a_bounded_number_of_requests(
    lie: Lie, autojump_clock: MockClock
) -> None:
    async with open_swarm(seed=1, size=24, config=SMALL_TABLES) as swarm, trio.open_nursery() as nursery:
        liars = await start_liars(swarm, nursery, lie, 3)
        asked_before = sum(liar.asked for liar in liars)
        rng = Random(1)
        for key in keys_with_two_honest_replicas(swarm, liars, 15):
            writer, reader = rng.sample(swarm.nodes, 2)
            before = [swarm.network_of(node).sent.total() for node in (writer, reader)]
            receipt = await writer.put(key, key.encode())
            assert receipt.acknowledged
            found = await reader.get(key, latest=True)
            assert found is not None
            assert found.value == key.encode()
            for node, sent in zip((writer, reader), before, strict=True):
                assert swarm.network_of(node).sent.total() - sent <= MAX_REQUESTS
                assert_little_is_held(swarm, node, liars)
        assert sum(liar.asked for liar in liars) > asked_before, "they had their say"
        nursery.cancel_scope.cancel()


async def test_a_put_goes_on_to_the_next_closest_past_two_replicas_that_answer_without_a_status(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=8) as swarm, trio.open_nursery() as nursery:
        liars = await start_liars(swarm, nursery, no_status, 2)
        key = next(key for key in map("k{}".format, count()) if lying_replicas(swarm, liars, key) == 2)
        receipt = await swarm.nodes[0].put(key, b"value")
        assert receipt.acknowledged
        assert len(receipt.stored_by) >= 3
        assert receipt.refused == ()
        failed = dict(receipt.failed)
        assert failed == {liar.local: "not one status for each entry" for liar in liars}
        nursery.cancel_scope.cancel()


async def test_whoever_answers_with_garbage_leaves_the_table_at_once_and_is_not_asked_any_more_after_a_few_times(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=2) as swarm, trio.open_nursery() as nursery:
        (liar,) = await start_liars(swarm, nursery, garbage, 1)
        node = swarm.nodes[0]
        while not (await node.stats()).backed_off:
            await node.add_peer(swarm.address_of(liar.local))
            await node.put("k", b"")
            assert liar.local not in {status.peer for status in node.peers()}
            assert liar.asked <= 3 * OffenderSettings().tolerated
        assert (await node.stats()).offences == OffenderSettings().tolerated
        asked = liar.asked
        with pytest.raises(QueryError, match="kept breaking the protocol"):
            await node.add_peer(swarm.address_of(liar.local))
        assert liar.asked == asked
        await trio.sleep(OffenderSettings().back_off_s)
        await node.add_peer(swarm.address_of(liar.local))
        assert liar.asked > asked, "when its time is over it is asked again"
        nursery.cancel_scope.cancel()
