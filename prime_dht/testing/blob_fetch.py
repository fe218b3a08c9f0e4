"""A world for a fetch plan: providers that keep or break every promise, a store, and a clock that is only a number.

:class:`FetchWorld` does what a plan says and reports what comes of it, in an order that a seeded ``rng`` draws. It also
watches: nothing unverified is stored, nothing twice, nothing is looked for or asked of anybody without need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

from prime_dht.blobs.actions import (
    Ask,
    Cancel,
    DropProvider,
    End,
    Failed,
    FindProviders,
    Finished,
    Look,
    Refused,
    Store,
    WaitUntil,
)
from prime_dht.blobs.build import Block, DagBuilder
from prime_dht.blobs.cid import Cid, Codec
from prime_dht.blobs.plan import FetchPlan
from prime_dht.ids import US_PER_S, PeerId

MAX_STEPS = 20_000


def blocks_of(chunks: Iterable[bytes], links_per_node: int) -> tuple[Cid, dict[Cid, bytes]]:
    """The root and the blocks of a blob of these chunks."""
    builder = DagBuilder(links_per_node)
    blocks: list[Block] = []
    for chunk in chunks:
        leaf = Block(Cid.of_raw(chunk), chunk)
        blocks += [leaf, *builder.add(leaf.cid, len(chunk))]
    root, rest = builder.finish()
    return root, {block.cid: block.data for block in blocks + rest}


@dataclass(frozen=True, slots=True, kw_only=True)
class Temper:
    """How a provider answers: the chances that it fails in each way, and how long it takes for each block.

    Attributes:
        lies: sends other bytes.
        lacks: says that it has not the block.
        is_silent: never answers.
        leaves: disconnects instead of answering.
        is_busy: says so.
    """

    block_us: int = 10_000
    round_trip_us: int = 1_000
    lies: float = 0
    lacks: float = 0
    is_silent: float = 0
    leaves: float = 0
    is_busy: float = 0


HONEST = Temper()


@dataclass(slots=True)
class Log:
    """What happened.

    Attributes:
        asks: of each provider, the blocks in the order in which it was asked for them.
        stored: blocks in the order in which they were stored.
        asked_twice: blocks that were asked of two providers at a time.
        sent_bytes: what providers sent, wanted or not.
    """

    asks: dict[PeerId, list[Cid]] = field(default_factory=dict)
    stored: list[Cid] = field(default_factory=list)
    looked_for: list[Cid] = field(default_factory=list)
    dropped: dict[PeerId, DropProvider] = field(default_factory=dict)
    asked_twice: list[Cid] = field(default_factory=list)
    looks: int = 0
    searches: int = 0
    sent_bytes: int = 0
    most_under_way: int = 0


class FetchWorld:
    """Runs one plan to its end.

    Args:
        blocks: all blocks of the blob.
        providers: who can be found, and how they answer.
        store: what is in the store; blocks are added to it.
        reader_block_us: what the reader itself takes for each block that comes, one after the other.
    """

    def __init__(
        self,
        plan: FetchPlan,
        blocks: Mapping[Cid, bytes],
        providers: Mapping[PeerId, Temper],
        rng: Random,
        *,
        store: dict[Cid, bytes] | None = None,
        reader_block_us: int = 0,
    ) -> None:
        self.plan = plan
        self.blocks = blocks
        self.providers = dict(providers)
        self.store: dict[Cid, bytes] = {} if store is None else store
        self.log = Log()
        self.now_us = 0
        self._rng = rng
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._open: dict[Cid, list[PeerId]] = {}
        self._storing: set[Cid] = set()
        self._free_at_us: dict[PeerId, int] = {}
        self._reader_block_us = reader_block_us
        self._reader_free_at_us = 0

    def after(self, delay_us: int, event: Callable[[], None]) -> None:
        """Have something happen later."""
        self._count += 1
        heappush(self._events, (self.now_us + delay_us, self._count, event))

    def open_asks(self, peer: PeerId) -> set[Cid]:
        """The blocks that a provider was asked for and has not answered."""
        return {cid for cid, askers in self._open.items() if peer in askers}

    def run(self, until: Callable[[], bool] = lambda: False) -> End | None:
        """Run to the end, or until something is so; returns how the plan ended."""
        for _ in range(MAX_STEPS):
            *actions, last = self.plan.next(self.now_us)
            for action in actions:
                self._do(action)
            self.log.most_under_way = max(self.log.most_under_way, len(self._open) + len(self._storing))
            if isinstance(last, (Finished, Failed, Refused)):
                return last
            if until():
                return None
            assert isinstance(last, WaitUntil)
            assert last.at_us > self.now_us, "a plan that wants to be called again at once"
            if self._events and self._events[0][0] <= last.at_us:
                self.now_us, _, event = heappop(self._events)
                event()
            else:
                self.now_us = last.at_us
        raise AssertionError("a plan without end")

    def _do(self, action: object) -> None:
        match action:
            case Look(cids):
                self.log.looks += 1
                self.log.looked_for += cids
                self.after(self._rng.randrange(1000), lambda: self._look(cids))
            case Ask(peer, cids):
                for cid in cids:
                    self._ask(peer, cid)
            case Cancel(peer, cids):
                for cid in cids:
                    self._close(peer, cid)
            case Store(cid, data):
                assert data == self.blocks[cid], "an unverified block is stored"
                assert cid not in self.store, "a block is stored twice"
                assert cid not in self._storing, "a block is stored twice"
                self._storing.add(cid)
                self.after(self._rng.randrange(3000), lambda: self._stored(cid, bytes(data)))
            case DropProvider(peer):
                self.log.dropped[peer] = action
                for cid in self.open_asks(peer):
                    self._close(peer, cid)
            case FindProviders():
                self.log.searches += 1
                self.after(self._rng.randrange(US_PER_S), self._found)
            case _:
                raise AssertionError(f"{action} is no action here")

    def _look(self, cids: tuple[Cid, ...]) -> None:
        for cid in cids:
            if cid in self.store:
                data = self.store[cid] if cid.codec is Codec.DAG_PB or cid == self.plan.root else None
                self.plan.on_present(cid, data, self.now_us)
            else:
                self.plan.on_absent(cid)

    def _ask(self, peer: PeerId, cid: Cid) -> None:
        assert cid not in self.store, "a block is asked for that is there"
        askers = self._open.setdefault(cid, [])
        assert peer not in askers
        askers.append(peer)
        if len(askers) > 1:
            assert len(askers) == 2
            others = set(self.log.looked_for) - self._open.keys() - self._storing - self.store.keys()
            assert not others, "a block is asked for twice, but another not at all"
            self.log.asked_twice.append(cid)
        self.log.asks.setdefault(peer, []).append(cid)
        temper = self.providers[peer]
        begins_us = max(self._free_at_us.get(peer, 0), self.now_us + temper.round_trip_us)
        self._free_at_us[peer] = begins_us + temper.block_us
        self.after(begins_us + temper.block_us - self.now_us, lambda: self._arrive(peer, cid, temper))

    def _arrive(self, peer: PeerId, cid: Cid, temper: Temper) -> None:
        self._reader_free_at_us = max(self._reader_free_at_us, self.now_us) + self._reader_block_us
        self.after(self._reader_free_at_us - self.now_us, lambda: self._answer(peer, cid, temper))

    def _answer(self, peer: PeerId, cid: Cid, temper: Temper) -> None:
        draw = self._rng.random()
        if (draw := draw - temper.is_silent) < 0:
            return
        self._close(peer, cid)
        if (draw := draw - temper.lacks) < 0:
            self.plan.on_not_have(peer, [cid], self.now_us)
        elif (draw := draw - temper.is_busy) < 0:
            self.plan.on_busy(peer, [cid], self.now_us)
        elif (draw := draw - temper.leaves) < 0:
            self.plan.on_gone(peer, "left")
            for other in self.open_asks(peer):
                self._close(peer, other)
        else:
            data = bytearray(self.blocks[cid])
            self.log.sent_bytes += len(data)
            if draw < temper.lies:
                self.plan.on_false_block(peer, cid)
            else:
                self.plan.on_block(peer, cid, data, self.now_us)

    def _close(self, peer: PeerId, cid: Cid) -> None:
        askers = self._open.get(cid, [])
        if peer in askers:
            askers.remove(peer)
            if not askers:
                del self._open[cid]

    def _stored(self, cid: Cid, data: bytes) -> None:
        self._storing.remove(cid)
        self.store[cid] = data
        self.log.stored.append(cid)
        self.plan.on_stored(cid, self.now_us)

    def _found(self) -> None:
        for peer in self.providers:
            self.plan.on_provider(peer)
        self.plan.on_search_ended(self.now_us)
