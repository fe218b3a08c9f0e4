"""A node of its own: host, storage and DHT in one ``async with``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

from libp2p.abc import IHost

from prime_dht.config import Mode, NodeConfig, node_config
from prime_dht.durability import make_directory
from prime_dht.entries.validators import Validator
from prime_dht.errors import ConfigError, ValidationError
from prime_dht.ids import PeerId, peer_from_text, peer_text
from prime_dht.net.address_book import split_peer_address
from prime_dht.net.host import HostSettings, listen_addresses, open_host
from prime_dht.net.identity import IDENTITY_FILE, load_or_create_identity, new_identity, peer_id_of
from prime_dht.net.mdns import open_mdns
from prime_dht.node.dht import PrimeDHT
from prime_dht.node.life import MAX_BLOCKS_BYTES_IN_MEMORY
from prime_dht.storage.base import StorageBackend
from prime_dht.storage.blocks import BlockStore
from prime_dht.storage.memory import MemoryBackend
from prime_dht.storage.sqlite import SQLiteBackend

STORE_FILE = "store.sqlite"
BLOCKS_DIRECTORY = "blocks"


@asynccontextmanager
async def open_node(
    config: NodeConfig | None = None, *, validators: Mapping[str, Validator] | None = None
) -> AsyncIterator[PrimeDHT]:
    """Run a node: its own libp2p host, listening, with its data directory if it has one.

    The node starts to join its bootstrap peers at once and by itself; ``await dht.bootstrap()`` waits for that. With
    ``mdns`` it also joins whomever of its network it finds on the local network, now or later.

    Raises:
        ConfigError: ``config`` is none, or an address, a peer's multiaddr, the data directory or the identity file
            cannot be used.
        StorageError: the store cannot be opened, for example because another process has it.
    """
    config = node_config(config)
    for peer in config.peers:
        try:
            split_peer_address(peer)
        except ValidationError as error:
            raise ConfigError(f"peers: {error}") from error
    data_dir, allowed = config.data_dir, config.dht.allow_peers
    async with AsyncExitStack() as stack:
        storage: StorageBackend
        if data_dir is None:
            key_pair = new_identity()
        else:
            try:
                make_directory(data_dir)
            except FileExistsError as error:
                raise ConfigError(f"the data directory {data_dir} is not a directory") from error
            except OSError as error:
                raise ConfigError(f"the data directory {data_dir} cannot be used: {error.strerror}") from error
            key_pair = load_or_create_identity(data_dir / IDENTITY_FILE)
        if config.redis_url is not None:
            storage = await stack.enter_async_context(_open_redis(config.redis_url, peer_id_of(key_pair)))
        elif data_dir is not None:
            storage = await stack.enter_async_context(
                await SQLiteBackend.open(data_dir / STORE_FILE, synchronous=config.synchronous)
            )
        else:
            storage = await stack.enter_async_context(MemoryBackend())
        blocks = await stack.enter_async_context(await _open_blocks(config))
        host = await stack.enter_async_context(
            open_host(
                HostSettings(
                    key_pair=key_pair,
                    listen=config.listen,
                    announce=config.announce,
                    allow_peers=None if allowed is None else frozenset(map(peer_from_text, allowed)),
                    fast_transport=config.fast_transport,
                    max_connections=config.max_connections,
                    low_water_connections=config.low_water_connections,
                )
            )
        )
        dht = PrimeDHT(
            host, config.dht, storage=storage, blocks=blocks, bootstrap_peers=config.peers, validators=validators
        )
        await stack.enter_async_context(dht)
        if config.mdns:
            await stack.enter_async_context(
                open_mdns(
                    peer=dht.peer_id,
                    addresses=partial(_announced, host, config.dht.mode),
                    network_id=config.dht.network_id,
                    found=partial(dht.peer_found, source="mdns"),
                )
            )
        yield dht


async def _open_blocks(config: NodeConfig) -> BlockStore:
    directory = config.blocks_dir
    if directory is None and config.data_dir is not None:
        directory = config.data_dir / BLOCKS_DIRECTORY
    if directory is None:
        return BlockStore.in_memory(max_bytes=min(config.max_blocks_bytes, MAX_BLOCKS_BYTES_IN_MEMORY))
    return await BlockStore.open(directory, max_bytes=config.max_blocks_bytes)


def _announced(host: IHost, mode: Mode) -> tuple[bytes, ...]:
    """What mDNS tells others: nothing of a client, which answers nobody."""
    return () if mode is Mode.CLIENT else tuple(address.to_bytes() for address in listen_addresses(host))


def _open_redis(url: str, peer: PeerId) -> AbstractAsyncContextManager[StorageBackend]:
    """A node's store in a Redis server, which other nodes may share: each has its own prefix."""
    try:
        from prime_dht.storage.redis import RedisBackend
    except ImportError as error:
        raise ConfigError("a store in Redis needs the extra: pip install 'prime-dht[redis]'") from error
    return RedisBackend.open(url, prefix=f"prime-dht:{peer_text(peer)}")
