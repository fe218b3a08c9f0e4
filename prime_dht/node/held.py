"""Which sectors this node stores, which of them it *holds*, and what it declined.

**Arc.** The target arc (:mod:`prime_dht.kad.replicas`), as sectors.

**Held.** A sector is held when this node has, or validly declined, all that a replica had when their round began. So a
reader may take its finding nothing there for an absence. What it was equal with counts only if that was a replica in
the full sense: one that held the sector itself. Where nobody does, as in a swarm that just began, it is enough to be
equal with each of the ``r`` other servers nearest to the sector that are known: among them they have what there is.

With no other server known a node holds its arc provisionally: nobody else could have anything. That ends when it meets
one. A sector is no longer held when it leaves the arc, when a round ended that could not settle it, or when an op of it
was declined for which there is no room among those that are remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import or_

from prime_dht.ids import KAD_KEY_BITS, KadKey, Key, PeerId, kad_key
from prime_dht.kad.replicas import choose_replicas, syncs
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.location import sector_of
from prime_dht.storage.capacity import location_of
from prime_dht.sync.actions import Outcome
from prime_dht.sync.declined import Declined, DeclinedOp

PARTNERS_NOTED = 64
"""Partners of which the last round is kept in mind; those of an arc are some ten."""


@dataclass(frozen=True, slots=True)
class _Partner:
    """What the last round with a peer told: in which sectors they were equal, and which it holds."""

    equal: ArcSet
    held: ArcSet


class HeldSectors:
    """See the module.

    Args:
        replication: r.

    Attributes:
        declined: the ops declined.
    """

    def __init__(self, neighbourhood: Neighbourhood, *, sector_bits: int, replication: int) -> None:
        self._neighbourhood = neighbourhood
        self._sector_bits = sector_bits
        self._replication = replication
        self._held = ArcSet.empty(sector_bits=sector_bits)
        self._overflown = self._held  # sectors with declined ops that are not remembered
        self._partners: OrderedDict[PeerId, _Partner] = OrderedDict()
        self.declined = Declined()

    @property
    def arc(self) -> ArcSet:
        """The sectors this node is to store, as of now."""
        prefix = self._neighbourhood.target_arc().arc
        arc = ArcSet.of_prefix(prefix.value, prefix.length, sector_bits=self._sector_bits)
        self._held &= arc
        return arc

    @property
    def held(self) -> ArcSet:
        """Those of them that it holds, provisionally or not."""
        arc = self.arc
        return arc if self._neighbourhood.is_alone() else self._held

    def holds(self, key: Key) -> bool:
        """Whether this node's finding nothing under a key means that there is nothing.

        It does if it holds the sector and is, as far as it knows, one of the ``r`` closest: what was just put is at
        these, while others within whose arc it lies hear of it by sync.
        """
        if self._neighbourhood.is_alone():
            return True
        if sector_of(location_of(key), sector_bits=self._sector_bits) not in self._held:
            return False
        own, target = self._neighbourhood.own_contact(), kad_key(key)
        nearest = self._neighbourhood.table.find_closest(target, self._replication, where=syncs)
        return own in choose_replicas(target, nearest, self._replication, own=own)

    def decline(self, op: DeclinedOp) -> None:
        """Remember an op that was refused for good."""
        if not self.declined.add(op):
            self._overflown |= self._sectors([sector_of(op.location, sector_bits=self._sector_bits)])
            self._held -= self._overflown

    def retire(self, before_us: int) -> None:
        """Forget the declined ops that were retained until before this time."""
        before = len(self.declined)
        self.declined.retire(before_us)
        if len(self.declined) < before:
            self._overflown = self._sectors(())

    def round_ended(self, partner: PeerId, outcome: Outcome) -> None:
        """Take in what a round has shown."""
        if outcome.equal is None or outcome.left is None or outcome.partner_held is None:
            return
        self._partners[partner] = _Partner(outcome.equal, outcome.partner_held)
        self._partners.move_to_end(partner)
        if len(self._partners) > PARTNERS_NOTED:
            self._partners.popitem(last=False)
        equal = (outcome.equal & self.arc) - self._overflown
        self._held = (self._held - outcome.left) | (equal & outcome.partner_held)
        by_nobody = equal - self._held - self._held_by_others()
        self._held |= self._sectors(filter(self._is_equal_with_all_near, by_nobody))

    def _held_by_others(self) -> ArcSet:
        """What the partners that are still there said they hold."""
        table = self._neighbourhood.table
        said = [partner.held for peer, partner in self._partners.items() if table.get(peer) is not None]
        return reduce(or_, said, self._sectors(()))

    def _is_equal_with_all_near(self, sector: int) -> bool:
        """Whether this node was equal in a sector with each of the servers nearest to it."""
        middle = KadKey((2 * sector + 1) << (KAD_KEY_BITS - self._sector_bits - 1))
        nearest = self._neighbourhood.table.find_closest(middle, self._replication, where=syncs)
        partners = (self._partners.get(contact.peer) for contact in nearest)
        return all(partner is not None and sector in partner.equal for partner in partners)

    def _sectors(self, sectors: Iterable[int]) -> ArcSet:
        return ArcSet.of_sectors(sectors, sector_bits=self._sector_bits)
