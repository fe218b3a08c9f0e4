"""A node's life: what it is made of, how it begins and how it ends.

The work is done by the parts beside this module; their life becomes one ``async with``. While that block runs, the node
answers requests, keeps its routing table true, keeps blobs, and does its chores. All it knows of the world comes in
through its constructor: a network, a clock and a source of chance, so that whole swarms run in virtual time
(:mod:`prime_dht.testing.swarm`).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from types import TracebackType
from typing import Self

import trio
from libp2p.crypto.keys import PrivateKey
from multiaddr import Multiaddr

from prime_dht.background import background_nursery
from prime_dht.config import DhtConfig, Mode, dht_config
from prime_dht.entries.validators import Validator, ValidatorRegistry
from prime_dht.errors import LocalProtocolError, StorageError
from prime_dht.net.address_book import split_peer_address
from prime_dht.net.network import NetworkFactory
from prime_dht.node.clock import Clock, SystemClock
from prime_dht.node.keeper import Keeper
from prime_dht.node.parts import assemble
from prime_dht.storage.base import StorageBackend
from prime_dht.storage.blocks import BlockStore
from prime_dht.storage.memory import MemoryBackend

logger = logging.getLogger(__name__)

MAX_BLOCKS_BYTES_IN_MEMORY = 256 << 20
"""Of a block store that ends with its process."""

LAST_CHORES_S = 2.0
"""For what a node writes down when it stops."""


class NodeLife:
    """A node that can be run, once, as ``async with``.

    Args:
        join: makes its network.
        private_key: Ed25519; signs its entries.
        config: how to behave.
        storage: where entries go; memory by default. The caller closes what it brings.
        blocks: where the blocks of blobs go; likewise.
        bootstrap_peers: multiaddrs, each ending in ``/p2p/<peer id>``, of nodes to join through.
        validators: of namespaces other than ``/prime/``, by name; ``pk`` is there already.
        clock: the time.
        rng: for jitter and refresh targets.

    Raises:
        ConfigError: a validator is given for ``/prime/``.
        ValidationError: a bootstrap peer's multiaddr is malformed.
    """

    def __init__(
        self,
        join: NetworkFactory,
        private_key: PrivateKey,
        config: DhtConfig | None = None,
        *,
        storage: StorageBackend | None = None,
        blocks: BlockStore | None = None,
        bootstrap_peers: Iterable[str | Multiaddr] = (),
        validators: Mapping[str, Validator] | None = None,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        config = self.config = dht_config(config)
        parts = assemble(
            join,
            private_key,
            config,
            storage or MemoryBackend(),
            blocks or BlockStore.in_memory(max_bytes=MAX_BLOCKS_BYTES_IN_MEMORY),
            ValidatorRegistry(validators),
            clock or SystemClock(),
            rng,
            [split_peer_address(str(address)) for address in bootstrap_peers],
        )
        self._network = parts.network
        self._neighbourhood = parts.known
        self._feed = parts.feed
        self._cache = parts.cache
        self._explorer = parts.explorer
        self._replica = parts.replica
        self._writer = parts.writer
        self._reader = parts.reader
        self._records = parts.records
        self._keeping = parts.keeping
        self._left_puts = parts.left_puts
        self.blobs = parts.blobs
        self._keeper = Keeper(parts.writer, parts.clock)
        self._maintenance = parts.maintenance
        self._syncing = parts.syncing
        self._status = parts.status
        self._has_started = False
        self._life: AsyncExitStack | None = None
        self._nursery: trio.Nursery | None = None

    # Life

    async def __aenter__(self) -> Self:
        stack = AsyncExitStack()
        await stack.enter_async_context(self._running())
        self._life = stack
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._life is not None
        return await self._life.__aexit__(exc_type, exc, traceback)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        if self._has_started:
            raise LocalProtocolError("a node runs once, and this one was started before")
        self._has_started = True
        network, known = self._network, self._neighbourhood
        if self.config.mode is Mode.AUTO:
            known.is_server = bool(network.own_addresses())
        async with background_nursery() as nursery:
            for part in (network, known, self._replica, self._reader, self._records, self._keeper):
                await nursery.start(part.run)
            network.mount(as_server=known.is_server)
            try:
                await nursery.start(self._maintenance.run)
                await nursery.start(self._syncing.run)
                await nursery.start(self._keeping.run)
                await nursery.start(self._left_puts.run)
                self._nursery = nursery
                yield
            finally:
                self._nursery = None
                network.unmount()
                self._feed.close()
                with trio.move_on_after(LAST_CHORES_S) as scope:
                    scope.shield = True
                    try:
                        await self._maintenance.remember_peers()
                    except StorageError as error:
                        logger.warning("peers could not be remembered: %s", error)

    async def _check_running(self) -> None:
        if self._nursery is None:
            raise not_running()
        self._maintenance.wanted()


def not_running() -> LocalProtocolError:
    """What is raised when a node is used that does not run."""
    return LocalProtocolError("this node is not running: use it as `async with`")
