"""The network of :mod:`prime_dht.node`, over a libp2p host: calls out, answers in, addresses kept.

One object ties together the dialer with its address book, the client that asks and the server that answers, for one
Kademlia protocol on one host.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from multiaddr.protocols import P_P2P

from prime_dht.blobs.memory import Lend
from prime_dht.config import DhtConfig
from prime_dht.errors import ConfigError, QueryError, RemoteProtocolError, ValidationError
from prime_dht.ids import PeerId, peer_from_text, short
from prime_dht.net.address_book import ITSELF, AddressBook
from prime_dht.net.addresses import Reach, credible, credible_reply, reach_of
from prime_dht.net.bitswap import PROTOCOL as BITSWAP
from prime_dht.net.bitswap import BitswapServer
from prime_dht.net.block_server import BlockServer, BlockSource
from prime_dht.net.block_streams import BlockStream, BlockStreams
from prime_dht.net.dialer import Dialer
from prime_dht.net.host import listen_addresses
from prime_dht.net.network import Counters, Handler, OnDialled, OnOutcome, SyncHandler
from prime_dht.net.offenders import Offenders
from prime_dht.net.rpc_client import RpcClient
from prime_dht.net.rpc_server import RpcServer
from prime_dht.net.sync_streams import MessageStream, SyncStreams
from prime_dht.wire.kad import Reply, Request

if TYPE_CHECKING:
    from trio_typing import TaskStatus

OWN_ADDRESSES_FRESH_S = 60.0
"""How long the list of this node's own addresses is used before it is asked for again: interfaces come and go."""

logger = logging.getLogger(__name__)

_NOT_SUPPORTED = "protocols not supported"
"""How py-libp2p says that a peer refused all protocols; there is no exception class of its own for that."""


class Overlay:
    """See :class:`prime_dht.net.network.Network`.

    Args:
        host: running.
        config: protocols and limits.
        handler: answers requests once :meth:`mount` was called.
        offenders: who is neither answered nor asked for a while, whichever of both it misused.
    """

    def __init__(self, host: IHost, config: DhtConfig, handler: Handler, *, offenders: Offenders | None = None) -> None:
        self._host = host
        self._config = config
        self._book = AddressBook()
        self._dialer = Dialer(host, self._book)
        self._client = RpcClient(
            self._open_stream,
            kad_protocol=config.kad_protocol,
            rpc_protocol=config.rpc_protocol if config.pipelining else None,
        )
        self._offenders = offenders or Offenders()
        allowed = config.allow_peers
        self._allowed = None if allowed is None else frozenset(map(peer_from_text, allowed))
        self._handler = handler
        self.server = RpcServer(handler if allowed is None else self._answer_allowed, offenders=self._offenders)
        self._sync = SyncStreams(self._open_sync_stream, self._offenders)
        self._block_streams = BlockStreams(self._open_block_stream, self._offenders)
        self._block_server: BlockServer | None = None
        self._bitswap: BitswapServer | None = None
        self._mounted: dict[TProtocol, StreamHandlerFn] = {}
        self._own: tuple[bytes, ...] = ()
        self._own_until_s = -1.0
        self._dialer.on_dialling = self._look_for_nat
        self.local = PeerId(host.get_id().to_bytes())

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read answers until cancelled."""
        with self._dialer.hearing():
            await self._client.run(task_status=task_status)

    def mount(self, *, as_server: bool) -> None:
        """Answer requests on the host, in server mode. A client offers blocks alone: nobody asks it anything else.

        Raises:
            ConfigError: somebody else serves one of the protocols there; then none is offered.
        """
        handlers: dict[str, StreamHandlerFn] = {}
        if self._block_server is not None:
            handlers[self._config.blocks_protocol] = self._serve_blocks
        if as_server:
            handlers[self._config.kad_protocol] = self.server.serve_classical
            if self._sync.handler is not None:
                handlers[self._config.sync_protocol] = self._serve_sync
            if self._config.pipelining:
                handlers[self._config.rpc_protocol] = self.server.serve_pipelined
            if self._bitswap is not None and not self._offers(BITSWAP):
                handlers[BITSWAP] = self._serve_bitswap
        if taken := [protocol for protocol in handlers if self._offers(protocol)]:
            raise ConfigError(
                f"the host serves {', '.join(taken)} already: a second node on it needs a network_id or protocol_prefix"
                " of its own"
            )
        for protocol, handler in handlers.items():
            self._host.set_stream_handler(TProtocol(protocol), handler)
            self._mounted[TProtocol(protocol)] = handler

    def unmount(self) -> None:
        """Answer no longer, on streams that are open either."""
        for protocol, handler in self._mounted.items():
            if self._host.get_mux().handlers.get(protocol) is handler:  # the host's owner may have set another since
                self._host.remove_stream_handler(protocol)
        self._mounted.clear()
        self.server.stop()
        self._sync.stop()
        if self._block_server is not None and self._bitswap is not None:
            self._block_server.stop()
            self._bitswap.stop()

    def own_addresses(self) -> tuple[bytes, ...]:
        now_s = trio.current_time()
        if now_s >= self._own_until_s:
            own = (address.decapsulate_code(P_P2P) for address in listen_addresses(self._host))
            self._own = tuple(address.to_bytes() for address in own)
            self._own_until_s = now_s + OWN_ADDRESSES_FRESH_S
        return self._own

    def _look_for_nat(self, remote: bytes) -> None:
        """Say so if this node is a server that those whom it dials cannot dial."""
        is_server = TProtocol(self._config.kad_protocol) in self._mounted
        if not is_server or reach_of(remote) is not Reach.INTERNET:
            return
        self._dialer.on_dialling = None  # this can be told now, and is told once
        if all(reach_of(own) is not Reach.INTERNET for own in self.own_addresses()):
            logger.warning(
                "nobody on the Internet can dial this node, whose addresses are of a local network: others store "
                "nothing here, so forward a port and announce it (`announce`), or run a client (--client)"
            )

    async def call(
        self, peer: PeerId, request: Request, *, timeout_s: float, on_turn: Callable[[], None] | None = None
    ) -> Reply:
        asked_at_s = trio.current_time()
        self._check_dealt_with(peer)
        spent_s = await self._dialer.connect(peer, timeout_s=timeout_s, on_turn=on_turn)
        try:
            reply = await self._client.call(peer, request, timeout_s=timeout_s, spent_s=spent_s)
        except RemoteProtocolError:
            self._charge_once(peer, asked_at_s)
            raise
        return credible_reply(reply, told_from=lambda: self.remote_address_of(peer))

    def post(self, peer: PeerId, request: Request, *, timeout_s: float, then: OnOutcome) -> bool:
        asked_at_s = trio.current_time()
        if not self._is_allowed(peer) or self._offenders.wait_s(peer, now_s=asked_at_s) > 0:
            return False

        def answered(outcome: Reply | QueryError | RemoteProtocolError) -> None:
            if isinstance(outcome, RemoteProtocolError):
                self._charge_once(peer, asked_at_s)
            elif isinstance(outcome, Reply):
                outcome = credible_reply(outcome, told_from=lambda: self.remote_address_of(peer))
            then(outcome)

        return self._client.post(peer, request, timeout_s=timeout_s, then=answered)

    def _charge_once(self, peer: PeerId, asked_at_s: float) -> None:
        """Charge a peer, unless it was since this time: one wrong answer may fail many calls."""
        if not self._offenders.offended_since(peer, at_s=asked_at_s):
            self._offenders.charge(peer, now_s=trio.current_time())

    def tell_of_dials(self, on_dialled: OnDialled) -> None:
        self._dialer.on_dialled = on_dialled

    def serve_sync(self, handler: SyncHandler) -> None:
        self._sync.handler = handler

    def converse(self, peer: PeerId, *, timeout_s: float) -> AbstractAsyncContextManager[MessageStream]:
        return self._sync.open(peer, timeout_s=timeout_s)

    def serve_blocks(self, held: BlockSource, blocks: BlockSource) -> None:
        self._block_server = BlockServer(held, self._offenders)
        self._bitswap = BitswapServer(blocks, self._open_bitswap_stream, self._offenders)

    @property
    def blocks_sent(self) -> int:
        """Blocks that were sent to nodes of ours."""
        return 0 if self._block_server is None else self._block_server.blocks_sent

    def ask_blocks(
        self, peer: PeerId, *, timeout_s: float, lend: Lend = bytearray
    ) -> AbstractAsyncContextManager[BlockStream]:
        return self._block_streams.open(peer, timeout_s=timeout_s, lend=lend)

    def charge(self, peer: PeerId) -> None:
        self._offenders.charge(peer, now_s=trio.current_time())

    async def connect(self, peer: PeerId) -> None:
        """Dial a peer now, at the addresses known.

        Raises:
            QueryError: it could not be reached.
        """
        self._check_allowed(peer)
        await self._dialer.connect(peer)

    def learn_addresses(self, peer: PeerId, addresses: Iterable[bytes], *, source: str) -> None:
        if peer != self.local and self._is_allowed(peer):
            self._book.add(peer, addresses, source=source, now_s=trio.current_time())

    def forgive(self, peer: PeerId) -> None:
        self._book.forgive(peer)

    def addresses_of(self, peer: PeerId) -> tuple[bytes, ...]:
        """From the address book, or else what identify learned."""
        known = self._book.addresses(peer)
        if known:
            return known
        try:
            identified = self._host.get_peerstore().addrs(ID(peer))
        except PeerStoreError:
            return ()
        raw = credible(tuple(address.to_bytes() for address in identified), told_from=self.remote_address_of(peer))
        self._book.add(peer, raw, source=ITSELF, now_s=trio.current_time())
        return self._book.addresses(peer)

    def lasting_addresses_of(self, peer: PeerId) -> tuple[bytes, ...]:
        self.addresses_of(peer)  # which may know more than the book
        return self._book.lasting(peer)

    def source_of(self, peer: PeerId) -> str:
        return self._book.source_of(peer)

    def remote_address_of(self, peer: PeerId) -> bytes | None:
        return self._dialer.remote_address_of(peer)

    def is_connected(self, peer: PeerId) -> bool:
        return self._dialer.is_connected(peer)

    def is_dialable(self, peer: PeerId) -> bool:
        return self._dialer.is_dialable(peer)

    async def dial_back(self, peer: PeerId) -> None:
        self.addresses_of(peer)  # which may know more than the book
        await self._dialer.dial_back(peer)

    def connected_peers(self) -> tuple[PeerId, ...]:
        return self._dialer.connected_peers()

    def _is_allowed(self, peer: PeerId) -> bool:
        return self._allowed is None or peer in self._allowed

    def _check_allowed(self, peer: PeerId) -> None:
        if not self._is_allowed(peer):
            raise QueryError(f"peer {short(peer)} is not one of allow_peers")

    def _check_dealt_with(self, peer: PeerId) -> None:
        """Raise QueryError if this node has nothing to do with a peer, now or at all."""
        self._check_allowed(peer)
        wait_s = self._offenders.wait_s(peer, now_s=trio.current_time())
        if wait_s > 0:
            raise QueryError(f"peer {short(peer)} kept breaking the protocol; it is left alone for {wait_s:.0f} s")

    async def _serve_sync(self, stream: INetStream) -> None:
        peer = PeerId(stream.muxed_conn.peer_id.to_bytes())
        await (self._sync.serve(stream) if self._is_allowed(peer) else stream.reset())

    async def _open_sync_stream(self, peer: PeerId) -> INetStream:
        self._check_dealt_with(peer)
        return await self._open_stream(peer, [self._config.sync_protocol])

    async def _serve_blocks(self, stream: INetStream) -> None:
        assert self._block_server is not None
        peer = PeerId(stream.muxed_conn.peer_id.to_bytes())
        await (self._block_server.serve(stream) if self._is_allowed(peer) else stream.reset())

    async def _serve_bitswap(self, stream: INetStream) -> None:
        assert self._bitswap is not None
        peer = PeerId(stream.muxed_conn.peer_id.to_bytes())
        await (self._bitswap.serve(stream) if self._is_allowed(peer) else stream.reset())

    async def _open_bitswap_stream(self, peer: PeerId) -> INetStream:
        return await self._open_stream(peer, [BITSWAP])

    def _offers(self, protocol: str) -> bool:
        """Whether somebody else serves a protocol on this host."""
        return TProtocol(protocol) in self._host.get_mux().handlers

    async def _open_block_stream(self, peer: PeerId) -> INetStream:
        self._check_dealt_with(peer)
        return await self._open_stream(peer, [self._config.blocks_protocol])

    def _answer_allowed(self, peer: PeerId, request: Request) -> Reply | Awaitable[Reply]:
        if not self._is_allowed(peer):
            raise ValidationError(f"peer {short(peer)} is not one of allow_peers")
        return self._handler(peer, request)

    async def _open_stream(self, peer: PeerId, protocols: Sequence[str]) -> INetStream:
        """For the client; see :data:`prime_dht.net.rpc_client.OpenStream`."""
        try:
            try:
                return await self._new_stream(peer, protocols)
            except BaseLibp2pError:
                if self._dialer.is_connected(peer):
                    raise
                # The other end closed the connection, which had been idle, just as this one came back to it.
                return await self._new_stream(peer, protocols)
        except BaseLibp2pError as error:
            if _NOT_SUPPORTED in str(error.__cause__):
                what = protocols[-1]
                raise QueryError(f"peer {short(peer)} serves no {what}: a client, or of another network") from error
            raise QueryError(f"peer {short(peer)} opens no stream for {' or '.join(protocols)}: {error}") from error

    async def _new_stream(self, peer: PeerId, protocols: Sequence[str]) -> INetStream:
        await self._dialer.connect(peer)
        return await self._host.new_stream(ID(peer), [TProtocol(protocol) for protocol in protocols])

    def counters(self) -> Counters:
        return Counters(
            requests_sent=self._client.calls,
            requests_answered=dict(self.server.requests),
            offences=self._offenders.total,
            backed_off=self._offenders.backed_off(now_s=trio.current_time()),
        )
