"""A network in memory, for many whole nodes in one process: no sockets, no threads, all waiting in trio's time.

A :class:`World` is what lies between nodes; each is given its :class:`MemoryNetwork`, which is to it what
:class:`prime_dht.net.overlay.Overlay` is to a node on libp2p. A request becomes its exact bytes, takes a while, is
handled by a task of the other node, and its reply comes back in the same way. Under trio's ``MockClock`` hours pass in
an instant.

The world keeps to these rules:

- Between two nodes a message takes half of a round trip that is drawn for the pair from the world's seed, so it does
  not depend on what else happens: one seed is one history.
- A call needs a connection, or an address at which the other listens. Once made, a connection serves both ways and
  lasts until one of the two stops. Which addresses are known, and how long a peer is left alone after a failed dial, is
  the affair of the same :class:`~prime_dht.net.address_book.AddressBook` that a real dialer uses.
- A node that has *stopped* refuses a dial at once, as a machine does on which nothing listens, and what was under way
  is lost. A node that is *silent*, or beyond a *partition*, cannot be told from one that is slow: packets vanish.
- In a *lossy* world now and then a message vanishes, and the connection that it was on breaks with it.
- What a *mute* node sends vanishes, and what is sent to a *deaf* one: a network that is cut in one direction only.
- A node that is *slow* is farther from everybody. Of one that *lies*, others hear what its lie makes of its answers.

Who breaks the protocol is dealt with as on a stream: the call fails, and it counts (:mod:`prime_dht.net.offenders`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import trio
from multiaddr import Multiaddr

from prime_dht.background import background_nursery
from prime_dht.blobs.memory import Lend
from prime_dht.errors import PrimeDHTError, QueryError, RefusedError, RemoteProtocolError
from prime_dht.ids import PeerId, peer_text, short
from prime_dht.net.address_book import FAIR_DIAL_S, AddressBook
from prime_dht.net.addresses import credible_reply
from prime_dht.net.block_server import BlockSource
from prime_dht.net.network import BlockAsking, Conversation, Counters, Handler, OnDialled, OnOutcome, SyncHandler
from prime_dht.net.offenders import Offenders, Standing
from prime_dht.testing.memory_blocks import BlockLie, MemoryBlockStream
from prime_dht.testing.memory_streams import Call, MemoryConversation, conversation_pair
from prime_dht.wire.kad import PutValue, Reply, Request, decode_reply, decode_request, encode_reply, encode_request

if TYPE_CHECKING:
    from trio_typing import TaskStatus

PORT = 4001
LATENCY_SIGMA = 0.6
"""Of the log-normal distribution of round trips, as in :mod:`prime_dht.testing.simulator`."""

Lie = Callable[[Request, bytes], bytes | None]
"""What others hear instead of a node's true answer to a request: other bytes, or nothing, for ever."""

Witness = Callable[[PeerId, PeerId, bytes], None]
"""Told of each message that arrives: sender, receiver, bytes."""


class World:
    """What lies between nodes, and who can hear whom.

    Args:
        seed: of the latencies.
        round_trip_s: the median; 0 makes every message arrive at once.

    Attributes:
        requests: requests that reached their node, by kind.
        request_bytes, reply_bytes: what they and their replies took on the wire.
        blocks_sent, block_bytes_sent: by each node, when it was asked for blocks.
        block_lies: what nodes send instead of the blocks that they have.
        witness: is told of every message, if there is one.
    """

    def __init__(self, *, seed: int, round_trip_s: float = 0.05) -> None:
        self._seed = seed
        self._round_trip_s = round_trip_s
        self._networks: dict[PeerId, MemoryNetwork] = {}
        self._addresses: dict[PeerId, bytes] = {}
        self._addresses_given = 0
        self._silent: set[PeerId] = set()
        self._mute: set[PeerId] = set()
        self._deaf: set[PeerId] = set()
        self._side: dict[PeerId, int] = {}
        self._one_way_s: dict[frozenset[PeerId], float] = {}
        self._loss = 0.0
        self._losses = Random(f"{seed}/losses")  # noqa: S311 - a simulation
        self._slowness: dict[PeerId, float] = {}
        self._lies: dict[PeerId, Lie | None] = {}
        self.witness: Witness | None = None
        self.requests: Counter[str] = Counter()
        self.request_bytes = 0
        self.reply_bytes = 0
        self.blocks_sent: Counter[PeerId] = Counter()
        self.block_bytes_sent: Counter[PeerId] = Counter()
        self.block_lies: dict[PeerId, BlockLie] = {}

    def network(self, local: PeerId, handler: Handler, *, listens: bool = True) -> MemoryNetwork:
        """The network of a new node, or of one that was stopped and starts again, at the address it had."""
        network = self._networks[local] = MemoryNetwork(self, local, handler, listens=listens)
        return network

    def address_of(self, peer: PeerId) -> bytes:
        """The binary multiaddr of a node, its own until it moves, and never another's; addresses share no subnet."""
        if peer not in self._addresses:
            number, self._addresses_given = self._addresses_given, self._addresses_given + 1
            ip = f"{11 + number // 256}.{number % 256}.0.1"
            self._addresses[peer] = Multiaddr(f"/ip4/{ip}/tcp/{PORT}").to_bytes()
        return self._addresses[peer]

    def move(self, peer: PeerId) -> None:
        """Give a node another address, as a machine has on another network. Its connections are gone."""
        self._addresses.pop(peer, None)
        self._networks[peer].disconnect_all()

    def silence(self, peer: PeerId) -> None:
        """From here on no message to or from a node arrives, and nobody is told."""
        self._silent.add(peer)

    def unsilence(self, peer: PeerId) -> None:
        """Undo :meth:`silence`."""
        self._silent.discard(peer)

    def cut_one_way(self, peer: PeerId, *, is_mute: bool = False, is_deaf: bool = False) -> None:
        """From here on nothing that a node sends arrives, or nothing that is sent to it; or with neither, all again."""
        (self._mute.add if is_mute else self._mute.discard)(peer)
        (self._deaf.add if is_deaf else self._deaf.discard)(peer)

    def partition(self, *sides: Iterable[PeerId]) -> None:
        """Cut the world: messages pass within a side alone. Nodes that are named in none are on the first."""
        self._side = {peer: number for number, side in enumerate(sides) for peer in side}

    def heal(self) -> None:
        """Undo :meth:`partition`."""
        self._side.clear()

    def lose(self, share: float) -> None:
        """From here on every message is lost with this probability, in [0, 1)."""
        self._loss = share

    def slow(self, peer: PeerId, factor: float) -> None:
        """From here on messages to and from a node take ``factor`` times as long as they did at first."""
        self._slowness[peer] = factor

    def lie(self, peer: PeerId, lie: Lie | None) -> None:
        """From here on a node's answers are what ``lie`` makes of them; ``None``: the truth."""
        self._lies[peer] = lie

    # Within

    def arrived(self, sender: PeerId, receiver: PeerId, message: bytes) -> None:
        """A message has arrived."""
        if self.witness is not None:
            self.witness(sender, receiver, message)

    def block_sent(self, peer: PeerId, size_bytes: int) -> None:
        """A node has sent a block."""
        self.blocks_sent[peer] += 1
        self.block_bytes_sent[peer] += size_bytes

    def heard(self, peer: PeerId, request: bytes, answer: bytes) -> bytes | None:
        """What is heard of a node's answer to a request; ``None``: nothing, for ever."""
        lie = self._lies.get(peer)
        return answer if lie is None else lie(decode_request(request), answer)

    def loses_a_message(self) -> bool:
        """Whether the message that is sent now is lost."""
        return self._losses.random() < self._loss

    def one_way_s(self, a: PeerId, b: PeerId) -> float:
        """How long a message from one node to another takes; infinite if it never arrives."""
        if a in self._silent or b in self._silent or self._side.get(a, 0) != self._side.get(b, 0):
            return math.inf
        if a in self._mute or b in self._deaf:
            return math.inf
        pair = frozenset((a, b))
        if pair not in self._one_way_s:
            rng = Random(f"{self._seed}/{min(a, b).hex()}/{max(a, b).hex()}")  # noqa: S311 - a simulation
            self._one_way_s[pair] = self._round_trip_s / 2 * rng.lognormvariate(0, LATENCY_SIGMA)
        return self._one_way_s[pair] * self._slowness.get(a, 1.0) * self._slowness.get(b, 1.0)

    def listening_at(self, peer: PeerId, addresses: Iterable[bytes]) -> MemoryNetwork | None:
        """The network of a node, if it listens at one of these addresses."""
        network = self._networks.get(peer)
        is_there = network is not None and network.is_running and network.own_addresses()
        return network if is_there and self.address_of(peer) in addresses else None


class MemoryNetwork:
    """One node's view of a :class:`World`: a :class:`prime_dht.net.network.Network`.

    Attributes:
        sent: requests sent, by kind.
    """

    def __init__(self, world: World, local: PeerId, handler: Handler, *, listens: bool) -> None:
        self.local = local
        self.sent: Counter[str] = Counter()
        self._world = world
        self._handler = handler
        self._listens = listens
        self._book = AddressBook()
        self._links: dict[PeerId, MemoryNetwork] = {}
        self._serves = False
        self._nursery: trio.Nursery | None = None
        self._answered: Counter[str] = Counter()
        self._offenders = Offenders()
        self._sync_handler: SyncHandler | None = None
        self._block_source: BlockSource | None = None
        self._is_mounted = False
        self._on_dialled: OnDialled | None = None

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
                self.disconnect_all()

    @property
    def is_running(self) -> bool:
        return self._nursery is not None

    def mount(self, *, as_server: bool) -> None:
        self._is_mounted = True
        self._serves = as_server

    def unmount(self) -> None:
        self._is_mounted = False
        self._serves = False

    def own_addresses(self) -> tuple[bytes, ...]:
        return (self._world.address_of(self.local),) if self._listens else ()

    async def call(
        self, peer: PeerId, request: Request, *, timeout_s: float, on_turn: Callable[[], None] | None = None
    ) -> Reply:
        if on_turn is not None:
            on_turn()  # here nobody waits for a turn to dial
        self._check_not_left_alone(peer)
        self.sent[type(request).__name__] += 1
        message = encode_request(request)
        try:
            with trio.fail_after(timeout_s):
                answer = await self._exchange(await self._connect(peer, timeout_s), message)
            return credible_reply(decode_reply(request, answer), told_from=lambda: self._world.address_of(peer))
        except trio.TooSlowError as error:
            if peer not in self._links and timeout_s >= FAIR_DIAL_S:
                self._book.failed(peer, gave_s=timeout_s, now_s=trio.current_time())
            raise QueryError(f"peer {short(peer)} did not answer within {timeout_s:g} s") from error
        except RemoteProtocolError as error:
            self._offenders.charge(peer, now_s=trio.current_time())
            raise RemoteProtocolError(str(error), peer=peer_text(peer)) from error

    def post(self, peer: PeerId, request: Request, *, timeout_s: float, then: OnOutcome) -> bool:
        if self._nursery is None or peer not in self._links:
            return False
        self._nursery.start_soon(self._call_then, peer, request, timeout_s, then)
        return True

    async def _call_then(self, peer: PeerId, request: Request, timeout_s: float, then: OnOutcome) -> None:
        try:
            reply = await self.call(peer, request, timeout_s=timeout_s)
        except (QueryError, RemoteProtocolError) as error:
            then(error)
        else:
            then(reply)

    def tell_of_dials(self, on_dialled: OnDialled) -> None:
        self._on_dialled = on_dialled

    def learn_addresses(self, peer: PeerId, addresses: Iterable[bytes], *, source: str) -> None:
        if peer != self.local:
            self._book.add(peer, addresses, source=source, now_s=trio.current_time())

    def forgive(self, peer: PeerId) -> None:
        self._book.forgive(peer)

    def addresses_of(self, peer: PeerId) -> tuple[bytes, ...]:
        return self._book.addresses(peer)

    def lasting_addresses_of(self, peer: PeerId) -> tuple[bytes, ...]:
        return self._book.lasting(peer)

    def source_of(self, peer: PeerId) -> str:
        return self._book.source_of(peer)

    def remote_address_of(self, peer: PeerId) -> bytes | None:
        return self._world.address_of(peer) if peer in self._links else None

    def is_connected(self, peer: PeerId) -> bool:
        return peer in self._links

    def is_dialable(self, peer: PeerId) -> bool:
        return self._book.is_proven(peer) or peer not in self._world._networks

    async def dial_back(self, peer: PeerId) -> None:
        if not self.is_dialable(peer) and self._world.listening_at(peer, self.addresses_of(peer)) is None:
            raise QueryError(f"peer {short(peer)}: connection refused")
        self._book.succeeded(peer, self._world.address_of(peer), now_s=trio.current_time())

    def connected_peers(self) -> tuple[PeerId, ...]:
        return tuple(self._links)

    def counters(self) -> Counters:
        return Counters(
            requests_sent=self.sent.total(),
            requests_answered=dict(self._answered),
            offences=self._offenders.total,
            backed_off=self._offenders.backed_off(now_s=trio.current_time()),
        )

    def disconnect(self, peer: PeerId) -> None:
        """The connection to a peer is gone; that is no failure of anything but what is under way on it."""
        self._links.pop(peer, None)

    def disconnect_all(self) -> None:
        """No connection of this node is left, at either end."""
        for peer in self._links.values():
            peer.disconnect(self.local)
        self._links.clear()

    # The calling side

    def _check_not_left_alone(self, peer: PeerId) -> None:
        if self._offenders.wait_s(peer, now_s=trio.current_time()) > 0:
            raise QueryError(f"peer {short(peer)} kept breaking the protocol; it is left alone for a while")

    async def _connect(self, peer: PeerId, timeout_s: float) -> MemoryNetwork:
        if (linked := self._links.get(peer)) is not None:
            return linked
        if peer == self.local:
            raise QueryError("a node does not dial itself")
        if self._book.wait_s(peer, gives_s=timeout_s, now_s=trio.current_time()) > 0:
            raise QueryError(f"peer {short(peer)} could not be reached; it is left alone for a while")
        addresses = self._book.addresses(peer)
        if not addresses:
            raise QueryError(f"peer {short(peer)}: no address is known")
        await self._travel(peer)
        other = self._world.listening_at(peer, addresses)
        await self._travel(peer, back=True)
        if other is None or not other.is_running:
            self._book.failed(peer, now_s=trio.current_time())
            raise QueryError(f"peer {short(peer)}: connection refused")
        self._book.succeeded(peer, self._world.address_of(peer), now_s=trio.current_time())
        self._links[peer] = other
        other._links[self.local] = self
        if other._on_dialled is not None:
            other._on_dialled(self.local)
        return other

    async def _exchange(self, other: MemoryNetwork, message: bytes) -> bytes:
        await self._travel(other.local)
        call = Call(self.local, message)
        self._world.arrived(self.local, other.local, message)
        other.take(call)
        await call.done.wait()
        await self._travel(other.local, back=True)
        if call.answer is None:
            raise (RefusedError if call.is_refused else QueryError)(f"peer {short(other.local)} reset the stream")
        answer = self._world.heard(other.local, message, call.answer)
        if answer is None:
            await trio.sleep_forever()
        self._world.arrived(other.local, self.local, answer)
        self._world.reply_bytes += len(answer)
        return answer

    async def _travel(self, peer: PeerId, *, back: bool = False) -> None:
        """Wait for as long as a message takes to a peer, or from it."""
        ends = (peer, self.local) if back else (self.local, peer)
        one_way_s = self._world.one_way_s(*ends)
        if self._world.loses_a_message():
            self._break_link(peer)
            one_way_s = math.inf
        await trio.sleep(one_way_s)

    def _break_link(self, peer: PeerId) -> None:
        other = self._links.pop(peer, None)
        if other is not None:
            other.disconnect(self.local)

    # Rounds

    def serve_sync(self, handler: SyncHandler) -> None:
        self._sync_handler = handler

    @asynccontextmanager
    async def converse(self, peer: PeerId, *, timeout_s: float) -> AsyncIterator[Conversation]:
        self._check_not_left_alone(peer)
        try:
            with trio.fail_after(timeout_s):
                other = await self._connect(peer, timeout_s)
                await self._travel(peer)
                ours, theirs = conversation_pair(self.local, peer, self._carrier(other), other._carrier(self))
                is_taken = other.take_round(theirs)
                await self._travel(peer, back=True)
        except trio.TooSlowError as error:
            if peer not in self._links:
                self._book.failed(peer, gave_s=timeout_s, now_s=trio.current_time())
            raise QueryError(f"peer {short(peer)} opens no stream within {timeout_s:g} s") from error
        if not is_taken:
            raise QueryError(f"peer {short(peer)} does not sync")
        try:
            yield ours
        finally:
            ours.close()

    # Blocks

    def serve_blocks(self, held: BlockSource, blocks: BlockSource) -> None:  # noqa: ARG002 - nobody speaks Bitswap here
        self._block_source = held

    @asynccontextmanager
    async def ask_blocks(self, peer: PeerId, *, timeout_s: float, lend: Lend = bytearray) -> AsyncIterator[BlockAsking]:
        self._check_not_left_alone(peer)
        try:
            with trio.fail_after(timeout_s):
                other = await self._connect(peer, timeout_s)
                await self._travel(peer)
        except trio.TooSlowError as error:
            raise QueryError(f"peer {short(peer)} opens no stream within {timeout_s:g} s") from error
        if other._block_source is None or not other._is_mounted:
            raise QueryError(f"peer {short(peer)} serves no blocks")
        stream = MemoryBlockStream(
            other._block_source,
            travel=partial(self._travel, peer),
            travel_back=partial(self._travel, peer, back=True),
            is_open=lambda: self._links.get(peer) is other and other._is_mounted,
            lie=self._world.block_lies.get(peer),
            sent=partial(self._world.block_sent, peer),
            lend=lend,
        )
        try:
            async with background_nursery() as nursery:
                nursery.start_soon(stream.carry)
                yield stream
        except RemoteProtocolError:
            self.charge(peer)
            raise

    def charge(self, peer: PeerId) -> None:
        self._offenders.charge(peer, now_s=trio.current_time())

    def take_round(self, conversation: MemoryConversation) -> bool:
        """A peer begins a round: have this node take part; whether it does."""
        is_tolerated = self._offenders.standing(conversation.peer, now_s=trio.current_time()) is Standing.TOLERATED
        if self._nursery is None or not self._serves or self._sync_handler is None or not is_tolerated:
            return False
        self._nursery.start_soon(self._take_part, self._sync_handler, conversation)
        return True

    async def _take_part(self, handler: SyncHandler, conversation: MemoryConversation) -> None:
        try:
            await handler(conversation)
        except RemoteProtocolError:
            self.charge(conversation.peer)
        except PrimeDHTError:
            pass  # the stream is reset, which says nothing of the peer
        finally:
            conversation.close()

    def _carrier(self, other: MemoryNetwork) -> Callable[[bytes], Awaitable[None]]:
        async def carry(message: bytes) -> None:
            await self._travel(other.local)
            self._world.arrived(self.local, other.local, message)

        return carry

    # The answering side

    def take(self, call: Call) -> None:
        """A request has arrived: have it answered."""
        is_tolerated = self._offenders.standing(call.caller, now_s=trio.current_time()) is Standing.TOLERATED
        if self._nursery is None or not self._serves or not is_tolerated:
            call.done.set()
        else:
            self._nursery.start_soon(self._answer, call)

    async def _answer(self, call: Call) -> None:
        try:
            request = decode_request(call.message)
            kind = type(request).__name__
            self._answered[kind] += 1
            self._world.requests[kind] += 1
            self._world.request_bytes += len(call.message)
            answer = self._handler(call.caller, request)
            call.answer = encode_reply(request, answer if isinstance(answer, Reply) else await answer)
        except RemoteProtocolError:
            self._offenders.charge(call.caller, now_s=trio.current_time())
        except PrimeDHTError:  # there is no answer to this request, which says nothing of the peer
            call.is_refused = isinstance(request, PutValue)
        finally:
            call.done.set()
