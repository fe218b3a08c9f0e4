"""The fetch plan: which block of a blob from whom, how many at a time, what to try again, when to give up.

A plan follows a :class:`~prime_dht.blobs.walk.Walk`, whose blocks it brings from *providers*, peers that announced that
they have the blob, into a store. Report what happens, call :meth:`FetchPlan.next` and do what it says. Which way each
block goes is told in :mod:`prime_dht.blobs.under_way`.

- *Resuming.* Every block is looked for in the store before it is asked of anybody; what is there is not fetched again.
- *Order.* The blocks of the walk in its order, so that a reader can follow; nodes before leaves, so that there is
  always a next leaf. What comes back from a provider is the first to be asked of another.
- *From whom.* Of the providers in use (:mod:`prime_dht.blobs.breadth`: no more than make it faster) with room in their
  window (:mod:`prime_dht.blobs.provider`) the one that would have delivered it first. What those in use lack is asked
  of any. Newcomers are tried before all others, but at the end (:mod:`prime_dht.blobs.choice`).
- *Twice.* A block is asked of one provider at a time, but when there is nothing else to ask for: at the end, where
  everything waits for a node, such as the root, and where no more may be under way. Then what has been open for half a
  second is asked of a second provider too, one that is idle, from the last block backwards; or, where no more may be
  under way, the first block, if whoever was asked has not answered for so long. Whoever comes first counts.
- *Providers* come and go at any time. One that sent bytes that are not the block is dropped for good. One is dropped
  that stalls, twice in a row if it has delivered before, that lacks the root, that lacks 8 blocks more than it brought,
  or that is busy 8 times in a row while others wait for its place; if it is found again, it may try again after all
  others. A block that one lacks is asked of others.
- *Turns.* A provider may be held up, because other fetches of this node have their turn to ask it. It is then asked for
  nothing, what was not said to it yet is asked of others, and a fetch that waits for its turn does not fail.
- *Nobody left.* When no provider has the next block, and when few are left, others are searched for
  (:mod:`prime_dht.blobs.searches`). After ``max_searches`` that were needed and brought not a single block, or
  ``patience_us`` without one, the plan has *failed*; all that was stored stays, and another fetch goes on from there.
  Once a provider has brought a block, ``max_searches_midway`` are made: who was there may come back. What is looked for
  or stored, be it for as long as a slow reader takes, is no time without a block, but saves no fetch either: it may
  wait for the very block that nobody has. If the blob breaks a rule of DAGs, it is *refused*: no provider can help.

**Bounds.** Of blocks that are asked for or not yet stored there are never more than ``max_bytes`` and one block, beside
a few nodes, and ``max_blocks``; this is also how a slow disk slows the network down. A block that is in the blob
several times counts each time: wherever it goes, somebody notes its places, and writes them all. Providers beyond
``max_providers`` wait until there is room. What a plan holds does not grow with the blob.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prime_dht.blobs.actions import (
    Action,
    Ask,
    Cancel,
    DropProvider,
    End,
    Failed,
    FindProviders,
    Finished,
    Look,
    Progress,
    Refused,
    Store,
    WaitUntil,
)
from prime_dht.blobs.breadth import MAX_LAG_US, Breadth
from prime_dht.blobs.choice import SECOND_AFTER_US, first_for, newcomers, second_for
from prime_dht.blobs.cid import BlockBytes, Cid
from prime_dht.blobs.provider import WINDOW_US, Provider
from prime_dht.blobs.searches import Searches
from prime_dht.blobs.under_way import BlockUnderWay, State, UnderWay
from prime_dht.blobs.walk import Walk
from prime_dht.errors import BlobError
from prime_dht.ids import US_PER_S, PeerId, peer_text

REST_US = US_PER_S // 2
"""A provider that is busy is not asked for so long."""

REFILL_BELOW = 0.75
"""Of the blocks that may be under way; with fewer, more are drawn."""

A_WHILE_US = 3 * US_PER_S
"""If all that is still to be fetched takes longer, and there are few providers, others are searched for."""

MAX_STALLS = 2
MAX_MISSES = 8
MAX_REFUSALS = 8
MAX_REMEMBERED = 1024
"""Of the providers that wait, that have left, and that were dropped for good."""

TOLD_IN_FAILURE = 8
"""Of the providers that were tried, so many are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """How a blob is fetched.

    Attributes:
        max_bytes: of blocks under way at a time, from when they are looked for until they are stored.
        max_blocks: likewise, in blocks.
        max_providers: asked at a time.
        silence_us: a provider that says nothing for so long has stalled.
        patience_us: a fetch that wants blocks of providers, and gets none for so long, has failed.
        max_searches: for providers, when nobody has the next block, in a row and without a block from any.
        max_searches_midway: likewise, in a fetch to which a provider has brought a block before.
    """

    max_bytes: int = 32 << 20
    max_blocks: int = 512
    max_providers: int = 32
    silence_us: int = 15 * US_PER_S
    patience_us: int = 120 * US_PER_S
    max_searches: int = 3
    max_searches_midway: int = 5


class FetchPlan:
    """The fetch of one walk. See the module. All times are microseconds of one monotonic clock."""

    def __init__(self, walk: Walk, *, now_us: int, limits: FetchLimits | None = None) -> None:
        self._walk = walk
        self._limits = limits or FetchLimits()
        self._blocks = UnderWay()
        self._breadth = Breadth(now_us)
        self._providers: dict[PeerId, Provider] = {}
        self._hostile: dict[PeerId, str] = {}
        self._left: dict[PeerId, str] = {}
        self._waiting: dict[PeerId, str] = {}
        self._actions: list[Action] = []
        self._searches = Searches(now_us)
        self._progress_at_us = now_us
        self._settled_bytes = self._fetched_bytes = self._fetched_blocks = self._fetched_parts = 0
        self._is_drawn = False  # whether the walk has nothing more to fetch before what is under way has come
        self._end: End | None = None

    @property
    def root(self) -> Cid:
        """The blob's name."""
        return self._walk.root

    @property
    def progress(self) -> Progress:
        return Progress(
            size_bytes=self._walk.part_bytes,
            settled_bytes=self._settled_bytes + self._walk.repeated_bytes,
            fetched_bytes=self._fetched_bytes,
            fetched_blocks=self._fetched_blocks,
            fetched_parts=self._fetched_parts,
        )

    def next(self, now_us: int) -> list[Action]:
        """What to do now, and at the end one ``WaitUntil``; or, once the plan has ended, why.

        What is still asked of providers at the end is wanted no more.
        """
        if self._end is None:
            self._take_from_the_stalled(now_us)
            self._admit()
            self._set_breadth(now_us)
            self._draw_blocks()
        if self._end is None:
            self._assign(now_us)
            self._ask_a_second(now_us)
            self._search_or_end(now_us)
        actions, self._actions = self._actions, []
        return [*actions, self._end or WaitUntil(self._next_change_at_us(now_us))]

    def on_provider(self, peer: PeerId) -> None:
        """A peer announced that it has the blob. One that was known already may have got what it lacked."""
        if peer in self._providers:
            self._blocks.forget_lacks(peer)
        elif peer not in self._hostile:
            _remember(self._waiting, peer, "")

    def on_gone(self, peer: PeerId, reason: str) -> None:
        """A provider can no longer be reached, or broke the protocol."""
        self._waiting.pop(peer, None)
        if provider := self._providers.get(peer):
            self._remove(provider, reason)

    def on_held_up(self, peer: PeerId, cids: Iterable[Cid]) -> None:
        """Other fetches from a provider have their turn, and it is not asked for these blocks; nor for any before
        :meth:`on_turn`. What else it was asked for it may still bring.
        """
        if provider := self._providers.get(peer):
            provider.is_held_up = True
            self._take_back(provider, cids)

    def on_turn(self, peer: PeerId) -> None:
        """A provider may be asked again, of which others had their turn."""
        if provider := self._providers.get(peer):
            provider.is_held_up = False

    def on_search_ended(self, now_us: int) -> None:
        """All providers that a search found have been reported."""
        self._searches.on_ended(now_us)

    def on_present(self, cid: Cid, data: BlockBytes | None, now_us: int) -> None:
        """A block that was looked for is in the store. Bring the bytes of nodes and of the root; others need none."""
        block = self._blocks.get(cid, State.LOOKING)
        if block is None:
            return
        if block.size is None:
            if data is None or not cid.verify(data):
                self._blocks.want(block)
                return
            self._give(cid, data)
        self._progress_at_us = now_us
        self._settle(block)

    def on_absent(self, cid: Cid) -> None:
        """A block that was looked for is not in the store."""
        if block := self._blocks.get(cid, State.LOOKING):
            self._blocks.want(block)

    def on_stored(self, cid: Cid, now_us: int) -> None:
        """A block is in the store, durably as far as the caller cares for resuming."""
        if block := self._blocks.get(cid, State.STORING):
            self._progress_at_us = now_us
            self._settle(block)

    def on_block(self, peer: PeerId, cid: Cid, data: BlockBytes, now_us: int) -> None:
        """A provider sent a block. Its bytes have been verified: that takes longer than all that is done here."""
        provider = self._providers.get(peer)
        if provider is None:
            return
        provider.hear(now_us, len(data))
        provider.take_back(cid)
        block = self._blocks.get(cid, State.WANTED, State.ASKED)
        if block is None:
            return  # another was faster
        provider.stalls = provider.refusals = 0
        provider.delivered += 1
        for other in block.asked_of:
            if self._providers[other].lose(cid, now_us):
                self._actions.append(Cancel(other, (cid,)))
        self._breadth.hear(len(data))
        self._fetched_bytes += len(data)
        self._fetched_blocks += 1
        self._progress_at_us = now_us
        self._searches.on_block()
        if block.size is None:
            self._give(cid, data)
        elif block.size != len(data):
            self._refuse(f"a leaf of blob {self.root} has {len(data)} bytes where the DAG says {block.size}")
        if self._end is None:
            self._blocks.store(block)
            self._actions.append(Store(cid, data))

    def on_part(self, peer: PeerId, now_us: int) -> None:
        """A block that takes its time goes on coming from a provider: it is slow, but has not stalled."""
        if provider := self._providers.get(peer):
            provider.hear_part(now_us)
            self._fetched_parts += 1

    def on_false_block(self, peer: PeerId, cid: Cid) -> None:
        """A provider sent other bytes than those of a block."""
        if provider := self._providers.get(peer):
            self._drop(provider, f"sent other bytes than block {cid}", is_hostile=True)

    def on_not_have(self, peer: PeerId, cids: Iterable[Cid], now_us: int) -> None:
        """A provider says that it lacks blocks it was asked for."""
        provider = self._providers.get(peer)
        if provider is None:
            return
        provider.hear(now_us)
        lacks_root = False
        for cid in cids:
            if provider.take_back(cid) and (block := self._blocks.get(cid)):
                provider.missed += 1
                lacks_root = lacks_root or cid == self.root
                block.lacking.add(peer)
                self._blocks.release(block, peer)
        if lacks_root or provider.missed - provider.delivered >= MAX_MISSES:
            self._drop(provider, "lacks what it announced", is_hostile=False)

    def on_busy(self, peer: PeerId, cids: Iterable[Cid], now_us: int) -> None:
        """A provider says that too much is asked of it, and will not answer this. What was cancelled does not count."""
        provider = self._providers.get(peer)
        if provider is None:
            return
        provider.hear(now_us)
        if self._take_back(provider, cids) and now_us >= provider.rests_until_us:  # else it is of the same refusal
            provider.rest(now_us + REST_US)
            provider.refusals += 1
            if self._waiting and provider.refusals >= MAX_REFUSALS:
                self._drop(provider, "had no time", is_hostile=False)

    def _take_from_the_stalled(self, now_us: int) -> None:
        for provider in list(self._providers.values()):
            stalls_at_us = provider.stalls_at_us(self._limits.silence_us)
            if stalls_at_us is None or now_us < stalls_at_us:
                continue
            provider.stalls += 1
            if provider.stalls == MAX_STALLS or not provider.delivered:
                self._drop(provider, "stalled", is_hostile=False)
            else:
                self._relieve(provider, provider.asked, now_us)

    def _set_breadth(self, now_us: int) -> None:
        """Decide who is in use. If it had become too few, of one that is silent no more is expected than a block."""
        for provider in self._breadth.step(self._providers, now_us):
            if provider.asked[1:] and now_us >= provider.heard_us + MAX_LAG_US:
                self._relieve(provider, provider.asked[1:], now_us)

    def _admit(self) -> None:
        """Fill up the providers with those that wait: first those that were not tried before."""
        room = self._limits.max_providers - len(self._providers)
        if not room or not self._waiting:
            return
        for peer in sorted(self._waiting, key=self._left.__contains__)[:room]:
            del self._waiting[peer]
            self._providers[peer] = Provider(peer)
            self._blocks.forget_lacks(peer)

    def _draw_blocks(self) -> None:
        """Draw the next blocks of the walk, as many as may be under way, and have them looked for.

        Once that many are, none is drawn before there is room for several: to look for several, and to ask for them,
        costs as much as for one.
        """
        drawn: list[Cid] = []
        full = 1.0 if self._is_drawn else REFILL_BELOW
        self._is_drawn = False
        try:
            while self._has_room(full):
                full = 1.0
                leaf = self._walk.next_leaf()
                if leaf is None:
                    self._is_drawn = True
                    break
                block = self._blocks.get(leaf.cid)
                if block is None:
                    block = self._blocks.draw(leaf.cid, leaf.size)
                    drawn.append(leaf.cid)
                elif block.size not in (None, leaf.size):
                    raise BlobError(f"blob {self.root} says two sizes of block {leaf.cid}")
                self._blocks.place(block, leaf.size, self._walk.bytes_of(leaf))
        except BlobError as error:
            self._refuse(str(error))
        for cid in self._walk.wanted():
            if cid not in self._blocks:
                self._blocks.draw(cid, None)
                drawn.append(cid)
        if drawn:
            self._actions.append(Look(tuple(drawn)))

    def _has_room(self, part: float) -> bool:
        """Whether less is under way than this part of what may be."""
        limits = self._limits
        return self._blocks.bytes < part * limits.max_bytes and self._blocks.places < part * limits.max_blocks

    def _assign(self, now_us: int) -> None:
        """Ask for the blocks that are wanted, the first first, of whoever has room and would deliver soonest."""
        in_use = self._breadth.in_use(self._providers)
        free = [provider for provider in in_use if provider.has_room(now_us)]
        trying = [] if self._is_drawn else newcomers(in_use, now_us)  # what is learned at the end is of no more use
        asks: dict[PeerId, list[Cid]] = {}
        lacked: list[BlockUnderWay] = []
        while free and (block := self._blocks.take_wanted()):
            provider = first_for(block, free, trying)
            if provider is None:
                lacked.append(block)
                continue
            self._ask(provider, block, now_us)
            asks.setdefault(provider.peer, []).append(block.cid)
            if provider in trying:
                trying.remove(provider)
            if not provider.has_room(now_us):
                free.remove(provider)
        for block in lacked:
            self._blocks.want(block)
        self._actions += [Ask(peer, tuple(cids)) for peer, cids in asks.items()]
        if lacked:
            peers = {provider.peer for provider in in_use}
            if any(peers <= block.lacking for block in lacked) and self._breadth.use_all(now_us):
                self._assign(now_us)

    def _ask_a_second(self, now_us: int) -> None:
        for late_us, block in self._asked_of_one():
            if now_us >= late_us and (provider := second_for(block, self._providers.values(), now_us)):
                self._ask(provider, block, now_us)
                self._actions.append(Ask(provider.peer, (block.cid,)))

    def _asked_of_one(self) -> list[tuple[int, BlockUnderWay]]:
        """The blocks that may be asked of a second provider, and from when on.

        There are none as long as there is anything else to ask for. Where that is because no more may be under way, it
        is the first block that holds up all others, if whoever was asked for it has fallen silent: for longer than all
        that is asked of it would take.
        """
        if self._blocks.count(State.LOOKING, State.WANTED):
            return []
        if self._is_drawn:
            return [(block.asked_at_us + SECOND_AFTER_US, block) for block in self._blocks.asked_of_one()]
        first = self._blocks.first()
        if first is None or len(first.asked_of) != 1:
            return []
        provider = self._providers[first.asked_of[0]]
        silence_us = max(SECOND_AFTER_US, provider.expected_us(0) if provider.delivered else 0)
        return [(max(first.asked_at_us, provider.heard_us) + silence_us, first)]

    def _search_or_end(self, now_us: int) -> None:
        if self._walk.done and not self._blocks:
            self._end = Finished()
            return
        is_wanted = self._blocks.count(State.WANTED, State.ASKED) > 0
        if not is_wanted or any(provider.is_held_up for provider in self._providers.values()):
            self._progress_at_us = now_us  # what is waited for is this end: the store, the reader, or other fetches
        if now_us >= self._progress_at_us + self._limits.patience_us:
            self._fail(f"got no block for {self._limits.patience_us // US_PER_S} s")
            return
        searches, block = self._searches, self._lacked_by_all()
        limits = self._limits
        most = limits.max_searches_midway if self._fetched_blocks else limits.max_searches
        if block is None or searches.in_vain < most:
            is_needed = block is not None
            if searches.is_due(now_us, is_needed=is_needed) and (is_needed or self._are_more_of_use()):
                searches.begin(is_needed=is_needed)
                self._actions.append(FindProviders())
        elif not searches.is_under_way and all(each.is_idle for each in self._providers.values()):
            self._fail(f"nobody has block {block.cid}")

    def _are_more_of_use(self) -> bool:
        """Whether more providers would be, though those that are there may have all: see :mod:`.searches`."""
        if self._searches.is_first:
            return self._blocks.count(State.WANTED, State.ASKED) > 0
        if len(self._providers) + len(self._waiting) > 1:
            return False
        soon_bytes = sum(provider.window_bytes for provider in self._providers.values()) * A_WHILE_US // WINDOW_US
        part_bytes = self._walk.part_bytes
        return part_bytes is None or part_bytes - self.progress.settled_bytes > soon_bytes

    def _lacked_by_all(self) -> BlockUnderWay | None:
        """The first block that is wanted, if no provider may have it."""
        block = self._blocks.first_wanted()
        return block if block and self._providers.keys() <= block.lacking else None

    def _next_change_at_us(self, now_us: int) -> int:
        """When :meth:`next` will have something to do, always later than now."""
        times = [self._progress_at_us + self._limits.patience_us, self._breadth.lags_at_us, *self._searches.times_us]
        times += [at_us for at_us, _ in self._asked_of_one()]
        for provider in self._providers.values():
            times += [provider.rests_until_us, provider.stalls_at_us(self._limits.silence_us) or 0]
        return min((time for time in times if time > now_us), default=now_us + self._limits.patience_us)

    def _ask(self, provider: Provider, block: BlockUnderWay, now_us: int) -> None:
        provider.ask(block.cid, block.budget_bytes, now_us)
        self._blocks.ask(block, provider.peer, now_us)

    def _relieve(self, provider: Provider, cids: tuple[Cid, ...], now_us: int) -> None:
        """Ask others for some of what was asked of a provider, and it for nothing new for a while."""
        self._actions.append(Cancel(provider.peer, cids))
        self._take_back(provider, cids)
        provider.rest(now_us + REST_US)

    def _take_back(self, provider: Provider, cids: Iterable[Cid]) -> int:
        """What was asked of a provider it will not bring; returns how many of these asks were open."""
        taken = [block for cid in cids if provider.take_back(cid) and (block := self._blocks.get(cid))]
        for block in taken:
            self._blocks.release(block, provider.peer)
        return len(taken)

    def _drop(self, provider: Provider, reason: str, *, is_hostile: bool) -> None:
        self._actions.append(DropProvider(provider.peer, reason, is_hostile))
        self._remove(provider, reason)
        if is_hostile:
            _remember(self._hostile, provider.peer, reason)

    def _remove(self, provider: Provider, reason: str) -> None:
        self._take_back(provider, provider.asked)
        del self._providers[provider.peer]
        _remember(self._left, provider.peer, reason)

    def _give(self, cid: Cid, data: BlockBytes) -> None:
        try:
            self._walk.give(cid, data)
        except BlobError as error:
            self._refuse(str(error))

    def _settle(self, block: BlockUnderWay) -> None:
        self._blocks.settle(block)
        self._settled_bytes += block.content_bytes

    def _refuse(self, reason: str) -> None:
        self._end = Refused(reason)

    def _fail(self, reason: str) -> None:
        tried = {**self._left, **{provider.peer: provider.standing for provider in self._providers.values()}}
        told = [f"{peer_text(peer)} {why}" for peer, why in list(tried.items())[-TOLD_IN_FAILURE:]]
        among = f"tried {len(tried)} providers: {'; '.join(told)}" if told else "no provider was found"
        self._end = Failed(f"blob {self.root}: {reason}; {among}, in {self._searches.in_vain} searches")


def _remember(peers: dict[PeerId, str], peer: PeerId, reason: str) -> None:
    """Note why a peer is no longer asked, and forget the one noted first if there are too many."""
    peers.pop(peer, None)
    peers[peer] = reason
    if len(peers) > MAX_REMEMBERED:
        del peers[next(iter(peers))]
