"""Whom a node knows: what it tells of those that come and go."""

from __future__ import annotations

from prime_dht.config import DhtConfig
from prime_dht.events import Event, PeerJoined, PeerLeft
from prime_dht.ids import US_PER_S, PeerId, kad_key
from prime_dht.kad.routing_table import Refusal
from prime_dht.node.feed import Feed
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.testing.memory_network import MemoryNetwork, World
from prime_dht.testing.serving import LOCAL, NOW_US, SetClock
from prime_dht.wire.kad import Connection, PeerRecord, Reply, Request


class ConnectedFrom(MemoryNetwork):
    """A network that is told from where peers are connected."""

    def __init__(self) -> None:
        super().__init__(World(seed=0), LOCAL, _asked_nothing, listens=True)
        self.remotes: dict[PeerId, bytes] = {}

    def remote_address_of(self, peer: PeerId) -> bytes | None:
        return self.remotes.get(peer)


def _asked_nothing(peer: PeerId, request: Request) -> Reply:
    raise AssertionError(f"{peer!r} asked for {request}")


def address(subnet: int, host: int) -> bytes:
    return bytes((4, 11, subnet, 0, host, 6, 0x0F, 0xA1))


async def test_those_that_are_gone_as_they_answer_do_not_choose_their_subnets() -> None:
    network = ConnectedFrom()
    known = Neighbourhood(network, DhtConfig(k_bucket_size=3), SetClock(NOW_US), Feed(), is_server=True)
    for number in range(100):
        peer = PeerId(b"\x00\x02%02d" % number)
        network.learn_addresses(peer, [address(number, 1)], source="identify")
        known.answered(peer, Reply(replicates=True))
    assert len(known.table) == 3, "all that the limits per subnet leave those of one"


async def test_one_that_moves_into_a_crowded_subnet_leaves_for_one_that_waits_and_both_are_told() -> None:
    network, clock, feed = ConnectedFrom(), SetClock(NOW_US), Feed()
    known = Neighbourhood(network, DhtConfig(k_bucket_size=3), clock, feed, is_server=True)
    peers = [PeerId(b"\x00\x02%02d" % number) for number in range(100)]
    near = next(peer for peer in peers if kad_key(peer) >> 255 == known.local >> 255)
    mover, second, third, waiting = [peer for peer in peers if kad_key(peer) >> 255 != known.local >> 255][:4]
    for host, (peer, subnet) in enumerate(((mover, 1), (second, 2), (third, 2), (near, 3), (waiting, 4))):
        network.remotes[peer] = address(subnet, host)
        known.answered(peer, Reply(replicates=peer != waiting))
    assert {contact.peer for contact in known.table} == {mover, second, third, near}
    assert known.own_arc.prefix.length == 1
    arrival = known.arrival
    events: list[Event] = []
    with feed.subscribe() as subscription:
        clock.time_us += 2 * US_PER_S
        network.remotes[mover] = address(2, 9)
        known.answered(mover, Reply(replicates=True))
        feed.close()
        events = [event async for event in subscription]
    assert events == [
        PeerLeft(peer=mover, reason=Refusal.CROWDED_SUBNET.value),
        PeerJoined(peer=waiting, addresses=()),
    ]
    assert arrival.is_set()
    assert known.own_arc.prefix.length == 0, "of three servers that sync there, two are left"


async def test_one_that_failed_and_asks_or_answers_again_is_not_silent() -> None:
    known = Neighbourhood(ConnectedFrom(), DhtConfig(), SetClock(NOW_US), Feed(), is_server=True)
    peer = PeerId(b"\x00\x02it")
    known.answered(peer, Reply(replicates=True))
    for asks in (True, False):
        known.failed(peer, "it is slow")
        assert [silent.peer for silent in known.silent_replicas()] == [peer]
        if asks:
            known.heard_from(peer)
        else:
            known.answered(peer, Reply(replicates=True))
        assert known.silent_replicas() == []


class Naming(ConnectedFrom):
    """A network in which everybody answers with the same names."""

    def __init__(self, *names: PeerRecord) -> None:
        super().__init__()
        self.names = names

    async def call(self, *_: object, **__: object) -> Reply:
        return Reply(closer=self.names)


async def test_of_what_a_peer_names_only_its_own_addresses_are_taken_for_its_own() -> None:
    peer, other = PeerId(b"\x00\x02it"), PeerId(b"\x00\x05other")
    theirs, its = (
        PeerRecord(one, (address(subnet, 1),), Connection.CAN_CONNECT) for subnet, one in enumerate((other, peer))
    )
    for names, addresses in (((theirs, its), its.addresses), ((theirs,), ())):
        network = Naming(*names)
        known = Neighbourhood(network, DhtConfig(), SetClock(NOW_US), Feed(), is_server=True)
        await known.meet(peer)
        assert network.addresses_of(peer) == addresses
        assert known.table.get(peer) is not None


async def test_one_that_could_not_be_reached_is_asked_again_where_others_say_it_is() -> None:
    """Who named it first may have lied about where it is, and must not hide it from those who say it truly."""
    network, peer = ConnectedFrom(), PeerId(b"\x00\x02it")
    known = Neighbourhood(network, DhtConfig(), SetClock(NOW_US), Feed(), is_server=True)
    false, true = (PeerRecord(peer, (address(subnet, 1),)) for subnet in (1, 2))
    network.learn_addresses(peer, false.addresses, source="kad")
    known.failed(peer, "no answer before the deadline")
    for again in (false, PeerRecord(peer), PeerRecord(peer, (b"no multiaddr",))):
        assert known.heard_of([again], now_s=0.0) == [], "it is looked for there no more, for a while"
    assert [contact.addresses for contact in known.heard_of([true], now_s=0.0)] == [true.addresses]
    network.learn_addresses(peer, true.addresses, source="kad")
    assert known.heard_of([true], now_s=0.0) == [], "it is not there either"
