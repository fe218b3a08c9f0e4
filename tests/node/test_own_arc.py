"""What a node is to store grows at the moment at which a server that counted for it does so no more."""

from __future__ import annotations

from prime_dht.config import DhtConfig
from prime_dht.ids import US_PER_S, PeerId
from prime_dht.kad.keyspace import Prefix, common_prefix_length
from prime_dht.testing.serving import Serving
from prime_dht.wire.kad import Reply

REFRESH_S = 600.0


class Met:
    """A node that has met servers enough for an arc that is not everything.

    Attributes:
        told: the arcs of which a watcher was told.
        far: the servers in the farthest bucket: all that keeps the arc from being everything.
    """

    def __init__(self) -> None:
        self.serving = Serving(DhtConfig(refresh_interval=REFRESH_S))
        self.known = self.serving.neighbourhood
        self.arc = self.known.own_arc
        peers = self.serving.meet(40)
        self.far = [peer for peer in peers if self._bucket(peer) == 0]
        self.narrow = self.arc.prefix
        assert self.narrow.length > 0
        self.told: list[Prefix] = []
        self.arc.watch(self.told.append)
        assert self.told == [self.narrow]

    @property
    def everything(self) -> Prefix:
        return Prefix.of(self.known.local, 0)

    def pass_s(self, seconds: float) -> None:
        self.serving.clock.time_us += int(seconds * US_PER_S)

    def _bucket(self, peer: PeerId) -> int:
        contact = self.known.table.get(peer)
        assert contact is not None
        return common_prefix_length(self.known.local, contact.kad_key)


async def test_when_a_server_leaves_the_table() -> None:
    met = Met()
    for peer in met.far:
        met.known.failed(peer, "it is gone")
    assert met.told == [met.narrow, met.everything]


async def test_when_a_server_replicates_no_more() -> None:
    met = Met()
    for peer in met.far:
        met.known.answered(peer, Reply(replicates=False))
    assert met.told == [met.narrow, met.everything]


async def test_when_a_round_shows_that_a_server_has_other_network_parameters() -> None:
    met = Met()
    for peer in met.far:
        met.arc.compared(peer, is_foreign=True)
    assert met.told == [met.narrow, met.everything]
    for peer in met.far:
        met.arc.compared(peer, is_foreign=False)
    assert met.told == [met.narrow, met.everything, met.narrow]


async def test_once_a_node_has_settled_its_arc_shrinks_only_after_an_interval() -> None:
    met = Met()
    met.arc.has_settled = True
    for peer in met.far:
        met.known.failed(peer, "it is gone")
    for peer in met.far:
        met.known.answered(peer, Reply(replicates=True))
    met.pass_s(REFRESH_S - 1)
    met.arc.observe()
    assert met.arc.prefix == met.everything
    met.pass_s(1)
    assert met.arc.prefix == met.everything, "to look at it changes nothing"
    met.arc.observe()
    assert met.told == [met.narrow, met.everything, met.narrow]
