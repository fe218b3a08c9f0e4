"""Fetching a blob: what a :class:`~prime_dht.blobs.plan.FetchPlan` says, done over the network and the block store.

The plan decides; here its actions become streams to providers, look-ups of providers, reads and writes, and what comes
of them is reported to it. A block that this node's own store has is taken from there, whatever the destination. Each
provider that is asked has one stream, for as long as the fetch lasts or until the plan drops it; if more fetches ask
the same peer than it serves, they take turns (:mod:`prime_dht.node.blobs.lines`).

**Bounds.** What may be under way is divided among the fetches that may run at a time (:mod:`prime_dht.blobs.shares`);
those beyond wait, but for streams, of which their reader decides how many there are, and each of which gets a quarter.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager
from typing import assert_never
from weakref import WeakValueDictionary

import trio

from prime_dht.background import background_nursery
from prime_dht.blobs.actions import (
    Action,
    Ask,
    Cancel,
    DropProvider,
    Failed,
    FindProviders,
    Finished,
    Look,
    Refused,
    Store,
    WaitUntil,
)
from prime_dht.blobs.cid import BlockBytes, Cid
from prime_dht.blobs.memory import CAPACITY_BYTES, BlockMemory
from prime_dht.blobs.plan import FetchLimits, FetchPlan
from prime_dht.blobs.shares import Shares
from prime_dht.errors import BlobError, PrimeDHTError, QueryError, RemoteProtocolError
from prime_dht.ids import US_PER_S, PeerId, short
from prime_dht.net.block_channel import PartCame
from prime_dht.net.block_streams import BlockCame, HasBlock, LacksBlock, NotAnswered
from prime_dht.net.network import BlockAsking, Network
from prime_dht.node.blobs.destination import Destination
from prime_dht.node.blobs.lines import Line, Lines
from prime_dht.node.blobs.progress import BlobProgress, Stage
from prime_dht.node.records import Records
from prime_dht.storage.blocks import BlockStore
from prime_dht.wire.blocks import MAX_UNANSWERED

FETCHES_AT_ONCE = 4
"""Each may need a stream to the same provider, which serves a few of one peer."""

OPENING_TIMEOUT_S = 10.0
SEARCH_TIMEOUT_S = 30.0
PROVIDERS_SOUGHT = 20

logger = logging.getLogger(__name__)

OnProgress = Callable[[BlobProgress], None]
"""Is told how far a blob is, often. It must not block."""


class RefusedBlobError(BlobError):
    """A blob breaks a rule of DAGs, or has another size than was said, whoever provides it."""


class Fetcher:
    """Fetches blobs, a few at a time.

    Args:
        in_flight_bytes: under way at a time, over all fetches.
    """

    def __init__(self, network: Network, records: Records, blocks: BlockStore, *, in_flight_bytes: int) -> None:
        self._network = network
        self._records = records
        self._blocks = blocks
        self._of_stream_bytes = in_flight_bytes // FETCHES_AT_ONCE
        self._shares = Shares(in_flight_bytes, most=FETCHES_AT_ONCE)
        self._places = trio.CapacityLimiter(FETCHES_AT_ONCE)
        self._lines: WeakValueDictionary[PeerId, Lines] = WeakValueDictionary()

    async def fetch(
        self,
        destination: Destination,
        hints: Collection[PeerId] = (),
        *,
        progress: OnProgress | None = None,
        waits: bool = True,
    ) -> None:
        """Bring all blocks of the destination's walk to it.

        Args:
            hints: peers that may have them, besides the providers that a search finds.
            waits: for its turn, if enough others are under way. Whoever reads several at a time cannot: they may be
                waiting for each other.

        Raises:
            BlobError: nobody is left from whom the rest can be had. What was brought stays, and another fetch goes on
                from there.
            RefusedBlobError: the blob breaks a rule of DAGs; no fetch can bring it.
            StorageError: the destination failed; what was brought stays.
        """
        if waits:
            async with self._places:
                with self._shares.share() as max_bytes:
                    await self._fetch(destination, hints, max_bytes, progress)
        else:
            await self._fetch(destination, hints, self._of_stream_bytes, progress)

    async def _fetch(
        self, destination: Destination, hints: Collection[PeerId], max_bytes: int, progress: OnProgress | None
    ) -> None:
        plan = FetchPlan(destination.walk, now_us=_now_us(), limits=FetchLimits(max_bytes=max_bytes))
        memory = BlockMemory(kept=max_bytes // CAPACITY_BYTES)
        fetch = _Fetch(self._network, self._records, self._blocks, destination, plan, memory, self._lines_to, progress)
        await fetch.run([peer for peer in hints if peer != self._network.local])

    def _lines_to(self, peer: PeerId) -> Lines:
        return self._lines.setdefault(peer, Lines())


class _Fetch:
    """One fetch, under way."""

    def __init__(
        self,
        network: Network,
        records: Records,
        blocks: BlockStore,
        destination: Destination,
        plan: FetchPlan,
        memory: BlockMemory,
        lines_to: Callable[[PeerId], Lines],
        progress: OnProgress | None,
    ) -> None:
        self._network = network
        self._records = records
        self._blocks = blocks
        self._destination = destination
        self._plan = plan
        self._memory = memory
        self._lines_to = lines_to
        self._on_progress = progress
        self._began_at_s = trio.current_time()
        self._hints: Collection[PeerId] = ()
        self._liars: set[PeerId] = set()
        self._lines: dict[PeerId, Line] = {}
        self._changed = trio.Event()
        self._failure: PrimeDHTError | None = None

    async def run(self, hints: Collection[PeerId]) -> None:
        self._hints = hints
        self._tell_providers(hints)
        try:
            async with background_nursery() as nursery:  # so that what a caller's ``progress`` raises is in no group
                end = await self._follow(nursery)
        finally:
            self._memory.close()  # the fetch and its lines know each other: they stay until garbage is collected
        match end:
            case Finished():
                return
            case Failed(reason):
                raise BlobError(reason)
            case Refused(reason):
                raise RefusedBlobError(reason)
            case PrimeDHTError():
                raise end
            case _:
                assert_never(end)

    async def _follow(self, nursery: trio.Nursery) -> Finished | Failed | Refused | PrimeDHTError:
        """Do what the plan says, to its end or until something fails here."""
        while True:
            self._changed = trio.Event()
            *actions, last = self._plan.next(_now_us())
            for action in actions:
                self._do(action, nursery)
            for line in self._lines.values():
                line.rest()
            self._report()
            if self._failure is not None:
                return self._failure
            if not isinstance(last, WaitUntil):
                assert isinstance(last, Finished | Failed | Refused)
                return last
            with trio.move_on_at(last.at_us / US_PER_S):
                await self._changed.wait()

    def _do(self, action: Action, nursery: trio.Nursery) -> None:
        match action:
            case Look(cids):
                nursery.start_soon(self._look, cids, nursery)
            case Ask(peer):
                if peer not in self._lines:
                    line = self._lines[peer] = Line(peer, self._lines_to(peer), self)
                    nursery.start_soon(self._talk, line)
                self._lines[peer].say(action)
            case Cancel(peer):
                if peer in self._lines:
                    self._lines[peer].say(action)
            case Store(cid, data):
                nursery.start_soon(self._store, cid, data)
            case DropProvider(peer, reason, is_hostile):
                logger.debug("blob %s: provider %s %s", self._plan.root, short(peer), reason)
                if is_hostile:
                    self._network.charge(peer)
                if peer in self._lines:
                    self._lines.pop(peer).scope.cancel()
            case FindProviders():
                nursery.start_soon(self._search)
            case WaitUntil() | Finished() | Failed() | Refused():
                raise AssertionError("the last of what a plan says, and no other")
            case _:
                assert_never(action)

    def _wake(self) -> None:
        self._changed.set()

    def _fail(self, error: PrimeDHTError) -> None:
        """The destination failed: there is no use in going on."""
        self._failure = self._failure or error
        self._wake()

    def _report(self) -> None:
        if self._on_progress is None:
            return
        progress = self._plan.progress
        self._on_progress(
            BlobProgress(
                stage=Stage.FETCHING,
                cid=self._plan.root,
                size_bytes=progress.size_bytes,
                done_bytes=progress.settled_bytes,
                fetched_bytes=progress.fetched_bytes,
                fetched_blocks=progress.fetched_blocks,
                fetched_parts=progress.fetched_parts,
                providers=sum(line.has_turn for line in self._lines.values()),
                elapsed_s=trio.current_time() - self._began_at_s,
            )
        )

    # The destination, and the own store

    async def _look(self, cids: tuple[Cid, ...], nursery: trio.Nursery) -> None:
        try:
            held = await self._destination.held(cids)
            for cid, data in held.items():  # at once: what the destination is told meanwhile, it would miss
                self._plan.on_present(cid, data, _now_us())
            self._wake()
            elsewhere = [cid for cid in cids if cid not in held]
            at_hand = await self._blocks.present(elsewhere) if elsewhere else set()
        except PrimeDHTError as error:
            self._fail(error)
            return
        for cid in elsewhere:
            if cid in at_hand:
                nursery.start_soon(self._copy, cid)
            else:
                self._plan.on_absent(cid)
        self._wake()

    async def _copy(self, cid: Cid) -> None:
        """Take a block from the own store."""
        try:
            (data,) = await self._blocks.read([cid], verify=True)
            if data is None:
                self._plan.on_absent(cid)
            else:
                await self._destination.take(cid, data)
                self._plan.on_present(cid, data, _now_us())
            self._wake()
        except PrimeDHTError as error:
            self._fail(error)

    async def _store(self, cid: Cid, data: BlockBytes) -> None:
        try:
            await self._destination.take(cid, data)
            self._memory.take_back(data)
            self._plan.on_stored(cid, _now_us())
            self._wake()
        except PrimeDHTError as error:
            self._fail(error)

    # Providers

    def _tell_providers(self, peers: Collection[PeerId]) -> None:
        for peer in peers:
            if peer != self._network.local and peer not in self._liars:
                self._plan.on_provider(peer)

    async def _search(self) -> None:
        """Find providers; those hinted at may have the blob by now as well."""
        self._tell_providers(self._hints)
        try:
            with trio.move_on_after(SEARCH_TIMEOUT_S):
                found = await self._records.find_providers(self._plan.root.multihash, PROVIDERS_SOUGHT)
                self._tell_providers([provider.peer for provider in found])
        except QueryError as error:
            logger.debug("blob %s: no search for providers: %s", self._plan.root, error)
        except PrimeDHTError as error:
            self._fail(error)
        self._plan.on_search_ended(_now_us())
        self._wake()

    async def _talk(self, line: Line) -> None:
        """Ask a provider what the plan wants of it, until it is dropped or goes away."""
        try:
            with line.scope:
                while True:
                    await line.wait()
                    async with line.lines.turn(line), self._stream_to(line.peer) as stream:
                        await self._converse(line, stream)
        except RemoteProtocolError as error:
            self._liars.add(line.peer)
            self._gone(line, str(error))
        except QueryError as error:
            self._gone(line, str(error))

    def _stream_to(self, peer: PeerId) -> AbstractAsyncContextManager[BlockAsking]:
        return self._network.ask_blocks(peer, timeout_s=OPENING_TIMEOUT_S, lend=self._memory.lend)

    async def _converse(self, line: Line, stream: BlockAsking) -> None:
        """Ask until the line's turn is over.

        Raises what ended it else, alone and not in a group, so that the stream's owner sees whose fault it is. What has
        come by then is still verified, and counts.
        """
        failures: list[QueryError | RemoteProtocolError] = []
        came: deque[BlockCame] = deque()  # the plan bounds what is asked
        something_came = trio.Event()
        is_over = False

        async def speak() -> None:
            try:
                while (action := await line.next()) is not None:
                    await self._say(action, stream)
            except QueryError as error:
                failures.append(error)
            talking.cancel_scope.cancel()

        async def listen() -> None:
            try:
                while True:
                    outcome = await stream.receive()
                    if isinstance(outcome, BlockCame):
                        came.append(outcome)
                        something_came.set()
                    else:
                        self._heard(line, outcome)
            except (QueryError, RemoteProtocolError) as error:
                failures.append(error)
                talking.cancel_scope.cancel()

        async def verify() -> None:
            nonlocal something_came
            while came or not is_over:
                await something_came.wait()
                something_came = trio.Event()
                blocks = list(came)  # all that came while others were hashed: fewer changes of threads
                came.clear()
                self._verified(line, blocks, await stream.verify(blocks))

        async with trio.open_nursery() as verifying:
            verifying.start_soon(verify)
            async with trio.open_nursery() as talking:
                talking.start_soon(speak)
                talking.start_soon(listen)
            is_over = True
            something_came.set()
        if failures:
            raise failures[0]

    # The turns of its lines

    def held_up(self, peer: PeerId, cids: Collection[Cid]) -> None:
        self._plan.on_held_up(peer, cids)
        self._wake()

    def has_turn(self, peer: PeerId) -> None:
        self._plan.on_turn(peer)
        self._wake()

    def _verified(self, line: Line, blocks: Iterable[BlockCame], are_right: Iterable[bool]) -> None:
        now_us = _now_us()
        for block, is_right in zip(blocks, are_right, strict=True):
            if is_right:
                self._plan.on_block(line.peer, block.cid, block.data, now_us)
            else:
                self._plan.on_false_block(line.peer, block.cid)
            line.answered(block.cid)
        self._wake()

    async def _say(self, action: Ask | Cancel, stream: BlockAsking) -> None:
        match action:
            case Cancel(_, cids):
                await stream.cancel(cids)
            case Ask(_, cids):
                if stream.unanswered + len(cids) > MAX_UNANSWERED:
                    raise QueryError("the peer leaves too much unanswered that was cancelled")
                await stream.ask(cids)
            case _:
                assert_never(action)

    def _heard(self, line: Line, outcome: HasBlock | LacksBlock | NotAnswered | PartCame) -> None:
        now_us = _now_us()
        match outcome:
            case PartCame():
                self._plan.on_part(line.peer, now_us)
            case LacksBlock(cid):
                self._plan.on_not_have(line.peer, [cid], now_us)
                line.answered(cid)
            case NotAnswered(cid):
                self._plan.on_busy(line.peer, [cid], now_us)
                line.answered(cid)
            case HasBlock():
                raise AssertionError("nobody was asked for presence")
            case _:
                assert_never(outcome)
        self._wake()

    def _gone(self, line: Line, reason: str) -> None:
        if self._lines.get(line.peer) is not line:
            return  # it was dropped, and may have come back since
        del self._lines[line.peer]
        self._plan.on_gone(line.peer, reason)
        self._wake()


def _now_us() -> int:
    """Of trio's clock; rounded up, so that the moment that was waited for has come."""
    return math.ceil(trio.current_time() * US_PER_S)
