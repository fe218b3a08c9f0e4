"""A node on a py-libp2p host: :class:`PrimeDHT`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from random import Random

import trio
from libp2p.abc import IContentRouting, IHost, IPeerRouting
from libp2p.tools.anyio_service import Service
from multiaddr import Multiaddr

from prime_dht.config import DhtConfig
from prime_dht.entries.validators import Validator
from prime_dht.net.host import guard_host
from prime_dht.net.overlay import Overlay
from prime_dht.node.arguments import PeerLike, peer_id_of
from prime_dht.node.clock import Clock
from prime_dht.node.core import Node
from prime_dht.node.results import Holding
from prime_dht.storage.base import StorageBackend
from prime_dht.storage.blocks import BlockStore

logger = logging.getLogger(__name__)


class PrimeDHT(Node, Service, IPeerRouting, IContentRouting):  # type: ignore[misc]
    """A DHT node on a py-libp2p host that is running already, beside whatever else the host does.

    Use it as ``async with``, or under py-libp2p's ``background_trio_service``; either way it runs once. It stands in
    for ``kad_dht`` wherever ``IPeerRouting`` or ``IContentRouting`` is asked for, except that its ``provide`` returns
    what can be awaited.

    While it runs the host is guarded (:func:`prime_dht.net.host.guard_host`), and stays so; what cannot be guarded on a
    host made elsewhere is logged.

    Args:
        host: running; this node neither starts nor stops it.
        config: how to behave.
        storage: where entries go; memory by default. The caller closes what it brings.
        blocks: where the blocks of blobs go; likewise.
        bootstrap_peers: multiaddrs, each ending in ``/p2p/<peer id>``, of nodes to join through.
        validators: of namespaces other than ``/prime/``, by name; ``pk`` is there already.
        clock: the time.
        rng: for jitter and refresh targets.

    Raises:
        ConfigError: the host is not made of py-libp2p's ``BasicHost`` and ``Swarm``, or the configuration is none.
        ValidationError: a bootstrap peer's multiaddr is malformed.
    """

    def __init__(
        self,
        host: IHost,
        config: DhtConfig | None = None,
        *,
        storage: StorageBackend | None = None,
        blocks: BlockStore | None = None,
        bootstrap_peers: Iterable[str | Multiaddr] = (),
        validators: Mapping[str, Validator] | None = None,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        super().__init__(
            lambda handler: Overlay(host, self.config, handler),
            host.get_private_key(),
            config,
            storage=storage,
            blocks=blocks,
            bootstrap_peers=bootstrap_peers,
            validators=validators,
            clock=clock,
            rng=rng,
        )
        self._host = host
        self._begun = trio.Event()

    async def holding_of(self, peer_id: PeerLike) -> Holding:
        """How much of what it is to store a peer holds, as it says itself; of this node, see :meth:`health`.

        Raises:
            QueryError: the peer cannot be reached or does not sync, or it or this node has not read its store yet.
        """
        await self._check_running()
        return await self._syncing.holding_of(peer_id_of(peer_id))

    async def run(self) -> None:
        """The service's main loop, for ``background_trio_service``."""
        async with self._running():
            await self.manager.wait_finished()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        try:
            for warning in guard_host(self._host):
                logger.warning("%s", warning)
            async with super()._running():
                self._begun.set()
                yield
        finally:
            self._begun.set()

    async def _check_running(self) -> None:
        manager = getattr(self, "_manager", None)
        if manager is not None and manager.is_running:  # which it says before it has run anything
            await self._begun.wait()
        await super()._check_running()
