"""Which sectors this node stores, which of them it *holds*, and what it declined.

**Arc.** The target arc (:mod:`prime_dht.node.own_arc`), as sectors.

**Held.** A sector is held when this node has, or validly declined, all that a replica had when their round began. So a
reader may take its finding nothing there for an absence. What it was equal with counts only if that was a replica in
the full sense: one that held the sector itself. Where nobody does, as in a swarm that just began, it is enough to be
equal with each of the ``r`` other servers nearest to the sector that are known: among them they have what there is.

With no other server known a node holds its arc provisionally: nobody else could have anything. That ends when it meets
one, and does not begin before it has joined, or joined again when it has lost the last that it knew: until then it
merely has not met those that there are. A sector is no longer held when it leaves the arc, when a round ended that
could not settle it, when an op of it was declined for which there is no room among those that are remembered, when one
was put off, because its key or publisher is full, when the store failed and has something else there since, or when
the calendar jumped, as by a wrong one ops retire too early, or are refused, and asleep none come.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import sub

import numpy as np

from prime_dht.ids import KAD_KEY_BITS, Key, PeerId, kad_key
from prime_dht.kad.keyspace import Prefix
from prime_dht.kad.replicas import syncs
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.location import location_of_key, sector_of
from prime_dht.sync.actions import Ending, Outcome
from prime_dht.sync.declined import Declined, DeclinedOp
from prime_dht.sync.messages import Refusal

PARTNERS_NOTED = 1000
"""Partners of which the last round is kept in mind; those of an arc are some ten."""

_TOP_BITS = 64
"""Of kad keys, those that are compared to tell who is nearer."""


@dataclass(frozen=True, slots=True)
class _Partner:
    """What the last round with a peer told: in which sectors they were equal, which it holds, which it may store.

    Attributes:
        vain: those that it did not settle, though nothing new came of it either: to try again at once would not help.
    """

    equal: ArcSet
    held: ArcSet
    arc: ArcSet
    vain: ArcSet


class HeldSectors:
    """See the module.

    Args:
        replication: r.

    Attributes:
        arc: the sectors this node is to store.
        declined: the ops declined.
    """

    def __init__(self, neighbourhood: Neighbourhood, *, sector_bits: int, replication: int) -> None:
        self._neighbourhood = neighbourhood
        self._sector_bits = sector_bits
        self._replication = replication
        self._held = ArcSet.empty(sector_bits=sector_bits)
        self._lacking = self._held  # sectors with ops put off, or declined and not remembered, since the last tick
        self._retired_us = 0
        self._partners: OrderedDict[PeerId, _Partner] = OrderedDict()
        self.declined = Declined()
        neighbourhood.own_arc.watch(self._arc_changed)

    def _arc_changed(self, arc: Prefix) -> None:
        self.arc = ArcSet.of_prefix(arc.value, arc.length, sector_bits=self._sector_bits)
        self._held &= self.arc

    @property
    def held(self) -> ArcSet:
        """Those of the arc that it holds, provisionally or not."""
        return self.arc if self._is_first() else self._held

    def holds(self, key: Key, *, names_some: bool = False) -> bool:
        """Whether what this node has under a key is all, and finding nothing means that there is nothing.

        So it is if it holds the sector and is, as far as it knows, one of the ``r`` closest: what was just put is at
        these, while others within whose arc it lies hear of it by sync. Whoever takes the place of one that is gone is
        such another, for as long as that one is believed to be silent.

        Args:
            names_some: whether it has anything there. If so, and nobody is silent, it need not be one of the closest: a
                reader asks those first.
        """
        target = kad_key(key)
        if sector_of(location_of_key(target), sector_bits=self._sector_bits) not in self._held:
            return self._is_first()
        known = self._neighbourhood
        silent = known.silent_replicas()
        if names_some and not silent:
            return True
        own = known.local ^ target
        servers = (*known.table.near(target, self._replication, where=syncs), *silent)
        return sum(server.kad_key ^ target < own for server in servers) < self._replication or self._is_first()

    def _is_first(self) -> bool:
        """Whether there is nobody else, as far as a node can know that has looked, nor was a moment ago."""
        known = self._neighbourhood
        return known.has_looked_around and known.own_arc.is_alone() and not known.silent_replicas()

    def decline(self, op: DeclinedOp) -> bool:
        """Remember an op that was refused for good; whether there was room for that."""
        is_noted = self.declined.add(op)
        if not is_noted:
            self._lacks(op)
        return is_noted

    def put_off(self, op: DeclinedOp, *, now_us: int) -> bool:
        """Remember an op until the next tick for which its key or its publisher has no room; whether it could be."""
        self._lacks(op)
        return self.declined.put_off(op, now_us=now_us)

    def _lacks(self, op: DeclinedOp) -> None:
        self._lacking |= self._sectors([sector_of(op.location, sector_bits=self._sector_bits)])
        self._held -= self._lacking

    def retire(self, before_us: int) -> None:
        """Forget the declined ops that were retained until before this time, and those put off before the tick.

        An earlier time than the last one is another tick as well: the clock was set back. So what was put off before is
        asked for again, and not left out of comparisons until the clock is there once more.
        """
        self.declined.retire(before_us)
        if before_us < self._retired_us:
            self.declined.forget_put_off()
        if before_us != self._retired_us:
            self._retired_us = before_us
            self._lacking = self._sectors(())

    def unsure(self, sectors: Sequence[int]) -> None:
        """The store may lack what was, or should be, in some sectors: it is equal with nobody there, any more."""
        lost = self._sectors(sectors)
        self._held -= lost
        for peer, noted in self._partners.items():
            self._partners[peer] = replace(noted, equal=noted.equal - lost, vain=noted.vain - lost)

    @property
    def missing(self) -> ArcSet:
        """Those that it is to hold and does not, yet."""
        return self.arc - self.held

    def arc_of(self, partner: PeerId) -> ArcSet | None:
        """What a peer stores at most, as it said last: that, or none of the arc that this node had then."""
        noted = self._partners.get(partner)
        return None if noted is None else noted.arc

    def prospects(self) -> Mapping[PeerId, int]:
        """In how many of the missing sectors a round with each peer may show what is needed, where that is not none.

        That is where the peer is known to hold a sector, or, where nobody is, where it is one of those nearest with
        which this node was not equal yet; but not where the last round with it was in vain. (This node's store may be
        full, or what it lacks be dated ahead of its clock.)
        """
        missing = self.missing - self._lacking
        held = {peer: missing & said for peer, said in self._held_by_others().items()}
        promised = {peer: sectors - self._partners[peer].vain for peer, sectors in held.items()}
        prospects = Counter({peer: len(sectors) for peer, sectors in promised.items() if sectors})
        open_sectors = list(reduce(sub, held.values(), missing))
        for sector, near in zip(open_sectors, self._nearest_to(open_sectors), strict=True):
            prospects.update(peer for peer in near if not self._has_told(peer, sector, or_tried=True))
        return prospects

    def round_ended(self, partner: PeerId, outcome: Outcome) -> None:
        """Take in what a round has shown, if it was more than a dry run with somebody who can be a replica."""
        contact = self._neighbourhood.table.get(partner)
        if outcome.ending is Ending.COMPARED or contact is None or not contact.syncs:
            return
        nothing = self._sectors(())
        if outcome.equal is not None and outcome.left is not None and outcome.partner_held is not None:
            vain = nothing if outcome.stored else outcome.left
            self._note(partner, _Partner(outcome.equal, outcome.partner_held, outcome.partner_arc or nothing, vain))
            shown = outcome.equal & outcome.partner_held & self.arc  # which may be smaller than when the round began
            self._held = (self._held - outcome.left) | (shown - self._lacking)
        elif outcome.refusal is not None and outcome.refusal.reason is Refusal.NO_COMMON_ARC:
            elsewhere = ArcSet.full(sector_bits=self._sector_bits) - self.arc
            self._note(partner, _Partner(nothing, nothing, elsewhere, nothing))
        else:
            return
        held_by_nobody = list(reduce(sub, self._held_by_others().values(), self.missing - self._lacking))
        self._held |= self._sectors(
            sector
            for sector, near in zip(held_by_nobody, self._nearest_to(held_by_nobody), strict=True)
            if all(self._has_told(peer, sector) for peer in near)
        )

    def _note(self, peer: PeerId, told: _Partner) -> None:
        self._partners[peer] = told
        self._partners.move_to_end(peer)
        if len(self._partners) > PARTNERS_NOTED:
            self._partners.popitem(last=False)

    def _held_by_others(self) -> dict[PeerId, ArcSet]:
        """What each of the partners that are still there said it holds."""
        table = self._neighbourhood.table
        return {peer: partner.held for peer, partner in self._partners.items() if table.get(peer) is not None}

    def _has_told(self, peer: PeerId, sector: int, *, or_tried: bool = False) -> bool:
        """Whether this node was equal with a peer in a sector, or knows that the peer does not store it.

        Args:
            or_tried: or whether the last round with it was in vain there.
        """
        noted = self._partners.get(peer)
        if noted is None:
            return False
        return sector in noted.equal or sector not in noted.arc or (or_tried and sector in noted.vain)

    def _nearest_to(self, sectors: Sequence[int]) -> list[list[PeerId]]:
        """Of each sector the ``r`` servers nearest to its middle, in any order."""
        if not sectors:
            return []
        servers = list(self._neighbourhood.own_arc.equals())
        if len(servers) <= self._replication:
            return [[contact.peer for contact in servers]] * len(sectors)
        tops = np.array([contact.kad_key >> (KAD_KEY_BITS - _TOP_BITS) for contact in servers], np.uint64)
        middles = np.array([(2 * sector + 1) << (_TOP_BITS - self._sector_bits - 1) for sector in sectors], np.uint64)
        places = np.argpartition(middles[:, np.newaxis] ^ tops, self._replication - 1, axis=1)[:, : self._replication]
        return [[servers[place].peer for place in row] for row in places.tolist()]

    def _sectors(self, sectors: Iterable[int]) -> ArcSet:
        return ArcSet.of_sectors(sectors, sector_bits=self._sector_bits)
