"""What :mod:`prime_dht.node` needs of a network: calls to peers. The seam at which tests put a swarm in memory.

:class:`prime_dht.net.overlay.Overlay` is the real one, over libp2p.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from prime_dht.blobs.cid import Cid
from prime_dht.blobs.memory import Lend
from prime_dht.errors import QueryError, RemoteProtocolError
from prime_dht.ids import PeerId
from prime_dht.net.block_server import BlockSource
from prime_dht.net.block_streams import BlockCame, Outcome
from prime_dht.wire.kad import Reply, Request

if TYPE_CHECKING:
    from trio_typing import TaskStatus

Handler = Callable[[PeerId, Request], Reply | Awaitable[Reply]]
"""Answers a peer's request, at once if nothing has to be waited for; raises a :class:`~prime_dht.errors.PrimeDHTError`
where there is no answer."""


OnOutcome = Callable[[Reply | QueryError | RemoteProtocolError], None]
"""Is given what came of a call. It must not block."""

OnDialled = Callable[[PeerId], None]
"""Is told who has connected to this node. It must not block."""


class Conversation(Protocol):
    """A stream of messages between this node and one peer, for one round. Deadlines are its user's."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        ...

    async def send(self, message: bytes) -> None:
        """Send one message.

        Raises:
            QueryError: the stream is gone.
        """
        ...

    async def receive(self) -> bytes | None:
        """The next message; ``None`` when the peer sends no more.

        Raises:
            QueryError: the stream is gone.
            RemoteProtocolError: what comes is no message, or too long.
        """
        ...


class BlockAsking(Protocol):
    """Blocks from one peer: :class:`prime_dht.net.block_streams.BlockStream`, which says what the methods do."""

    @property
    def unanswered(self) -> int: ...

    async def ask(self, cids: Sequence[Cid], *, presence_only: bool = False) -> None: ...

    async def cancel(self, cids: Iterable[Cid]) -> None: ...

    async def receive(self) -> Outcome: ...

    async def verify(self, blocks: Iterable[BlockCame]) -> list[bool]: ...


SyncHandler = Callable[[Conversation], Awaitable[None]]
"""Takes part in a round that a peer begins. The stream is closed when it returns, and reset if it raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What went over the network since the node started.

    ``offences`` are breaches of protocol by peers; ``backed_off`` peers are not dealt with now because of them.
    """

    requests_sent: int
    requests_answered: Mapping[str, int]
    offences: int
    backed_off: int


class Network(Protocol):
    """Peers, by id."""

    @property
    def local(self) -> PeerId:
        """This node."""
        ...

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry calls until cancelled."""
        ...

    def mount(self, *, as_server: bool) -> None:
        """From here on hand requests to this node's handler, if it is a server; a client offers nothing."""
        ...

    def unmount(self) -> None:
        """Answer no longer."""
        ...

    def own_addresses(self) -> tuple[bytes, ...]:
        """Binary multiaddrs at which others may reach this node; empty if it does not listen."""
        ...

    async def call(
        self, peer: PeerId, request: Request, *, timeout_s: float, on_turn: Callable[[], None] | None = None
    ) -> Reply:
        """Ask a peer, dialling it if need be.

        Args:
            timeout_s: for dial and answer. The wait for a turn to dial, of which there are only so many at a time in a
                process, does not count: the peer cannot help it.
            on_turn: called when that wait is over, or at once.

        Raises:
            QueryError: it cannot be reached or did not answer in time.
            RemoteProtocolError: it answered wrongly.
        """
        ...

    def post(self, peer: PeerId, request: Request, *, timeout_s: float, then: OnOutcome) -> bool:
        """As :meth:`call`, without waiting; ``False``, with nothing sent, if that is not possible just now.

        Args:
            then: is given the reply, or what :meth:`call` would raise, maybe before this returns.
        """
        ...

    def tell_of_dials(self, on_dialled: OnDialled) -> None:
        """Tell of each connection that a peer makes to this node, from :meth:`run` on."""
        ...

    def serve_sync(self, handler: SyncHandler) -> None:
        """Hand rounds that peers begin to a handler, from :meth:`mount` on if this node is a server."""
        ...

    def converse(self, peer: PeerId, *, timeout_s: float) -> AbstractAsyncContextManager[Conversation]:
        """A stream for a round with a peer, dialled if need be; closed if the block ends well, and else reset.

        Raises:
            QueryError: it cannot be reached within ``timeout_s``, or does not sync.
        """
        ...

    def serve_blocks(self, held: BlockSource, blocks: BlockSource) -> None:
        """Hand out blocks from :meth:`mount` on; a client too: who stores its entries fetches their blobs from it.

        Args:
            held: to nodes of ours, which ask for the presence of blobs that are kept.
            blocks: by Bitswap, which asks for that of blocks.
        """
        ...

    def ask_blocks(
        self, peer: PeerId, *, timeout_s: float, lend: Lend = bytearray
    ) -> AbstractAsyncContextManager[BlockAsking]:
        """A stream for blocks from a peer, dialled if need be.

        A :class:`RemoteProtocolError` that leaves the block is the peer's offence, and counted.

        Args:
            lend: gives memory for each block that comes.

        Raises:
            QueryError: it cannot be reached within ``timeout_s``, or has no blocks.
        """
        ...

    def charge(self, peer: PeerId) -> None:
        """A peer broke the protocol of a round (:mod:`prime_dht.net.offenders`)."""
        ...

    def learn_addresses(self, peer: PeerId, addresses: Iterable[bytes], *, source: str) -> None:
        """Note where a peer may be reached, and who says so: ``bootstrap``, ``kad``, ``manual``, …"""
        ...

    def forgive(self, peer: PeerId) -> None:
        """Forget that a peer could not be reached: the next call dials it, however lately that failed."""
        ...

    def addresses_of(self, peer: PeerId) -> tuple[bytes, ...]:
        """Binary multiaddrs known for a peer, those that worked first."""
        ...

    def lasting_addresses_of(self, peer: PeerId) -> tuple[bytes, ...]:
        """Those that may be remembered across restarts with :meth:`source_of`, and learned again as its word."""
        ...

    def source_of(self, peer: PeerId) -> str:
        """How a peer was found first."""
        ...

    def remote_address_of(self, peer: PeerId) -> bytes | None:
        """The address that an open connection to a peer goes to, as a binary multiaddr."""
        ...

    def is_connected(self, peer: PeerId) -> bool: ...

    def is_dialable(self, peer: PeerId) -> bool:
        """Whether a peer is known to listen where others can dial it. Who could connect to this node need not."""
        ...

    async def dial_back(self, peer: PeerId) -> None:
        """Make sure that a peer is dialable, dialling it once more if need be.

        Raises:
            QueryError: it is not.
        """
        ...

    def connected_peers(self) -> tuple[PeerId, ...]: ...

    def counters(self) -> Counters: ...


NetworkFactory = Callable[[Handler], Network]
"""Makes a node's network, given what answers its requests."""
