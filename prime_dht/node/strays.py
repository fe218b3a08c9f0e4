"""Strays: what a node stores outside its arc. It gives them to those who should have them, and drops them then.

A *stray* is an op whose sector is not in the node's arc: the arc shrank when others joined, or somebody put the entry
by a stale table. Sync compares only what lies in both partners' arcs, so nobody would ever look at it again.

In a *pass* over all strays a node takes one *batch* after the other, of sectors that lie side by side, so that the
entries of a batch have few replicas. It gives each entry, as it is, to the ``r`` servers closest to its key. A replica
*acknowledges* it by saying that it has it durably, or something newer in its slot. An entry that all ``r`` have
acknowledged in one pass is *settled*, and may be dropped; who had it an hour ago may have lost its store since. It
stays if one of them refused, had no room or did not answer, or if this node is one of them, whose arc then is behind.

**Nothing is lost by it.** Whoever drops an entry has given it to ``r`` servers closer to its key than itself. So of all
who have it, the ``r`` closest never drop it, whoever else drops it at the same moment, and whatever they know of each
other. Who dies between an acknowledgement and the drop still has a stray, and gives it once more: a put is idempotent.

**Pace.** A replica that took nothing of what it was given is passed over for the rest of the pass, and where many are,
the pass ends. A pass that leaves strays behind is followed by the next ever later (:class:`Turns`).

Plain records and provider records are none of this: whoever made them puts them again to the closest, and they expire.
Nor are short-lived entries, which are no ops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prime_dht.entries.entry import Entry
from prime_dht.ids import Key, OpId, PeerId
from prime_dht.node.batches import BATCH_ENTRIES, batches
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.location import sector_locations, sector_of

MAX_PASSED_OVER = 16
"""Replicas that took nothing; with more, it is likely this node's own network that fails."""

FIRST_WAIT_S = 60.0
MAX_WAIT_S = 3600.0
"""Between passes that leave strays behind."""


def stray_regions(ops: Sequence[int], arc: ArcSet) -> Iterator[range]:
    """The locations [start, stop) of strays, a few neighbouring sectors at a time.

    Args:
        ops: how many there are in each sector.
        arc: the sectors that this node is to store.

    Returns:
        for each run of sectors outside the arc that together hold no more than a batch, or for each single sector that
        does, its locations. Sectors without ops are in none, or between two that have some.

    >>> arc = ArcSet.of_prefix(0b01, 2, sector_bits=3)  # sectors 2 and 3
    >>> [(region.start >> 29, region.stop >> 29) for region in stray_regions([1, 0, 9, 9, 60, 4, 0, 99], arc)]
    [(0, 1), (4, 6), (7, 8)]
    """
    bits = arc.sector_bits
    for outside in (ArcSet.full(sector_bits=bits) - arc).arcs():
        first, last = (sector_of(location, sector_bits=bits) for location in (outside.first, outside.last))
        region, held = range(0), 0
        for sector in range(first, last + 1):
            if not ops[sector]:
                continue
            locations = sector_locations(sector, sector_bits=bits)
            if region and held + ops[sector] <= BATCH_ENTRIES:
                region, held = range(region.start, locations.stop), held + ops[sector]
                continue
            if region:
                yield region
            region, held = locations, ops[sector]
        if region:
            yield region


@dataclass(frozen=True, slots=True)
class Gift:
    """Entries for one replica."""

    peer: PeerId
    entries: tuple[Entry, ...]


class Pass:
    """One pass over the strays, batch by batch. For each: give away the :meth:`gifts`, say what came of every one
    (:meth:`answered`), drop what is then :meth:`settled`.

    Args:
        local: this node.
        replication: r.

    Attributes:
        kept: strays gone through so far that stay.
    """

    def __init__(self, local: PeerId, replication: int) -> None:
        self.kept = 0
        self._local = local
        self._replication = replication
        self._passed_over: set[PeerId] = set()
        self._awaited: dict[OpId, set[PeerId]] = {}

    @property
    def is_hopeless(self) -> bool:
        """Whether so many replicas took nothing that the rest is better left to the next pass."""
        return len(self._passed_over) > MAX_PASSED_OVER

    def gifts(self, batch: Iterable[Entry], servers: Mapping[Key, Sequence[PeerId]]) -> list[Gift]:
        """What to give to whom.

        Args:
            batch: strays.
            servers: of each of their keys, those closest to it that are known, nearest first; this node may be among
                them.
        """
        self._awaited = {}
        by_peer: dict[PeerId, list[Entry]] = defaultdict(list)
        for entry in batch:
            replicas = servers[entry.header.key][: self._replication]
            if len(replicas) < self._replication or self._local in replicas:
                self.kept += 1
                continue
            self._awaited[entry.op_id] = set(replicas)
            for replica in replicas:
                if replica not in self._passed_over:
                    by_peer[replica].append(entry)
        return [Gift(peer, tuple(part)) for peer, entries in by_peer.items() for part in batches(entries)]

    def answered(self, gift: Gift, acknowledged: Sequence[bool]) -> None:
        """A replica has answered, entry by entry; nothing acknowledged is as good as no answer."""
        for entry, is_acknowledged in zip(gift.entries, acknowledged, strict=True):
            if is_acknowledged:
                self._awaited[entry.op_id].discard(gift.peer)
        if not any(acknowledged):
            self._passed_over.add(gift.peer)

    def settled(self) -> list[OpId]:
        """Those of the batch that all their replicas have acknowledged, when all have answered."""
        settled = [op_id for op_id, awaited in self._awaited.items() if not awaited]
        self.kept += len(self._awaited) - len(settled)
        self._awaited = {}
        return settled


class Turns:
    """When the next pass is due. Times are seconds of a clock that never steps back."""

    def __init__(self) -> None:
        self._due_s = 0.0
        self._wait_s = FIRST_WAIT_S

    def is_due(self, now_s: float) -> bool:
        return now_s >= self._due_s

    def ended(self, now_s: float, *, dropped: int, kept: int) -> None:
        """A pass has ended. If it came to nothing, wait twice as long as the last time."""
        if dropped or not kept:
            self._wait_s = FIRST_WAIT_S
        self._due_s = now_s + (self._wait_s if kept else 0.0)
        if kept and not dropped:
            self._wait_s = min(2 * self._wait_s, MAX_WAIT_S)
