"""What replicas said of the slots that a reader asked for, joined and counted: whether it is enough, and who is behind.

A replica has *answered* when it has named an entry of those slots (a tombstone counts), or said that it holds the
sector, so that its finding nothing means something. How many must is said in :mod:`prime_dht.node.reader`.

One that is *behind*, as it named some and said that it does not hold the sector, has not: it was away, or just came,
or takes the place of one that is gone, and others may have more, or what is newer. What it named is joined all the
same.

One that named nothing but entries that this node declines (:mod:`prime_dht.node.pages`) is as good as silent: whether
there is a value cannot be told from it. So a replica that makes such entries up has no more say than one that says
nothing at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prime_dht.entries.entry import Entry, Slot
from prime_dht.entries.join import Selection, join, state_of
from prime_dht.ids import OpId, PeerId
from prime_dht.kad.contact import Contact
from prime_dht.node.pages import Page
from prime_dht.storage.paging import Place


@dataclass(slots=True)
class Answers:
    """Of one key.

    Attributes:
        quorum: replicas that must have answered.
        absence: replicas that must have, if none of them named an entry.
        selection: the slots asked for.
        by_peer: what each named.
        joined: the join of that.
        counted: those that have answered.
        behind: those that named something, and do not hold the sector.
        declined: by those that named nothing else, live entries that this node does not take, and why.
    """

    quorum: int
    absence: int
    selection: Selection
    by_peer: dict[PeerId, dict[Slot, Entry]] = field(default_factory=dict)
    joined: dict[Slot, Entry] = field(default_factory=dict)
    counted: set[PeerId] = field(default_factory=set)
    behind: set[PeerId] = field(default_factory=set)
    declined: dict[PeerId, dict[OpId, str]] = field(default_factory=dict)
    horizon: Place | None = None
    """The place up to which every answer is complete; ``None`` if all answers are."""

    def add(self, peer: PeerId, page: Page) -> None:
        """Count what a peer answered."""
        judged, end = page.judged, page.end
        named = {slot: entry for slot, entry in state_of(judged.admitted).items() if self.selection.includes(slot)}
        declined = {one.entry.op_id: one.reason for one in judged.declined if self.selection.includes(one.entry.slot)}
        if declined and not named:
            self.declined[peer] = declined
        self.by_peer[peer] = named
        self.joined = join(self.joined, named)
        if named and page.not_held:
            self.behind.add(peer)
        elif named or (page.held and not declined):
            self.counted.add(peer)
        if end is not None:
            self.horizon = end if self.horizon is None else min(self.horizon, end)

    @property
    def missing(self) -> int:
        """How many more replicas must answer."""
        needed = self.absence if self.found_nothing else self.quorum
        return max(0, needed - len(self.counted))

    @property
    def enough_nearest(self) -> int:
        """So many of the nearest are enough where some are behind, whether or not they count."""
        return self.quorum + self.absence

    @property
    def joined_of(self) -> int:
        """How many peers' answers were joined: those that named something, or hold the sector."""
        return len(self.counted) + len(self.behind)

    @property
    def found_nothing(self) -> bool:
        """Whether none of them named an entry."""
        return not self.joined

    def leaves_in_doubt(self, nearest: Sequence[Contact]) -> bool:
        """Whether an acknowledged put may lie with those of the nearest replicas alone that have not answered.

        It lies with ⌊r/2⌋ + 1 of them at least.
        """
        told_nothing = sum(one.peer not in self.by_peer or one.peer in self.declined for one in nearest)
        is_missed = told_nothing > len(nearest) // 2
        return self.found_nothing and (is_missed or len(self.by_peer) < self.quorum)

    def are_declined(self, nearest: Sequence[Contact]) -> bool:
        """Whether so many of the nearest replicas named only what this node declines that it may be acknowledged."""
        return self.found_nothing and sum(one.peer in self.declined for one in nearest) > len(nearest) // 2

    def why_declined(self) -> str:
        """What was declined, and why, for a person; empty if nothing was."""
        reasons = {op_id: reason for declined in self.declined.values() for op_id, reason in declined.items()}
        if not reasons:
            return ""
        return f"replicas hold entries that this node does not take: {len(reasons)} ({next(iter(reasons.values()))})"

    def silent_among(self, replicas: Sequence[Contact]) -> list[Contact]:
        """Those that have not answered."""
        return [replica for replica in replicas if replica.peer not in self.by_peer]

    def lacking(self, now_us: int) -> dict[PeerId, list[Entry]]:
        """Which peers lack which of the entries that stand.

        Of those that were asked for the newest only: nothing older than that, which they had no reason to send.
        """
        joined = self.joined
        if self.selection.newest and len(joined) > 1:
            chosen = self.selection.choose(joined, now_us)
            joined = {slot: entry for slot, entry in joined.items() if not chosen or entry.version >= chosen[0].version}
        lacking = {
            peer: [
                entry
                for slot, entry in joined.items()
                if (named := state.get(slot)) is None or named.op_id != entry.op_id
            ]
            for peer, state in self.by_peer.items()
        }
        return {peer: entries for peer, entries in lacking.items() if entries}
