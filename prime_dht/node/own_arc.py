"""What this node is to store: its target arc, and the servers that count for it.

The target arc (:mod:`prime_dht.kad.replicas`) follows from the routing table, and from what rounds of sync have shown:
a replica whose network parameters are others stores what is put to it but cannot stay equal with this node. For what
this node is to store, and holds, such a *foreign* one does not count.

The arc grows at the moment at which a server that counted for it is known to be gone, and whoever watches it is told
before anything else happens. The store, which may be full, must spare from then on what a put finds to be within; and
what this node held of a part that had left its arc, it does not hold any more when that part comes back.

Who knows nobody is to store everything. So a node that joins would pull all that its swarm has, were its arc to shrink
as slowly as that of one that has served its arc: until it has settled, the arc is what is observed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from prime_dht.config import DhtConfig
from prime_dht.ids import PeerId
from prime_dht.kad.contact import Contact
from prime_dht.kad.keyspace import Prefix
from prime_dht.kad.replicas import TargetArc, target_arc
from prime_dht.kad.routing_table import RoutingTable
from prime_dht.node.clock import Clock

FOREIGN_NOTED = 20_000
"""Foreign peers that are kept in mind; of more, the one noted first is forgotten."""


class OwnArc:
    """See the module.

    Args:
        table: the servers known. Whoever changes which of them there are, or which of them sync, calls
            :meth:`observe` then.

    Attributes:
        has_settled: whether this node has joined and met those near it. From then on its arc shrinks slowly.
    """

    def __init__(self, table: RoutingTable, config: DhtConfig, clock: Clock) -> None:
        self._table = table
        self._replication = config.replication_factor
        self._refresh_interval_s = config.refresh_interval
        self._clock = clock
        self._foreign: OrderedDict[PeerId, None] = OrderedDict()
        self.has_settled = False
        self._watchers: list[Callable[[Prefix], None]] = []
        self._target = self._observed()

    @property
    def prefix(self) -> Prefix:
        """The kad keys that this node is to store."""
        return self._target.arc

    def watch(self, tell: Callable[[Prefix], None]) -> None:
        """Have somebody told the arc now, and whenever it changes."""
        self._watchers.append(tell)
        tell(self.prefix)

    def observe(self) -> None:
        """See what the arc is now. It also shrinks by time alone, so this is to be called now and then anyhow."""
        before, observed = self.prefix, self._observed()
        if self.has_settled:
            self._target.update(observed.arc, self._clock.monotonic_s())
        else:
            self._target = observed
        if self.prefix != before:
            for tell in self._watchers:
                tell(self.prefix)

    def equals(self) -> Iterator[Contact]:
        """The servers known that keep entry sets equal with this node's, where both store them."""
        return (contact for contact in self._table if contact.syncs and contact.peer not in self._foreign)

    def is_alone(self) -> bool:
        """Whether no such server is known; such a node holds its arc provisionally."""
        return next(self.equals(), None) is None

    def compared(self, peer: PeerId, *, is_foreign: bool) -> None:
        """A round with a peer has shown whether it is foreign."""
        if is_foreign == (peer in self._foreign):
            return
        if is_foreign:
            self._foreign[peer] = None
            if len(self._foreign) > FOREIGN_NOTED:
                self._foreign.popitem(last=False)
        else:
            del self._foreign[peer]
        self.observe()

    def _observed(self) -> TargetArc:
        arc = target_arc(self._table.local, self.equals(), self._replication)
        return TargetArc(arc, refresh_interval_s=self._refresh_interval_s)
