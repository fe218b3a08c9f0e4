"""Configuration: frozen, validated when it is made, every field documented with its unit.

:class:`DhtConfig` says how a node behaves in a swarm; it is all that :class:`prime_dht.PrimeDHT` needs on a host that
exists already. :class:`NodeConfig` adds what a node of its own needs: where to listen, whom to dial, where its data is.

``refresh_interval`` and ``ttl`` are in seconds; they, ``k_bucket_size``, ``alpha`` and ``replication_factor`` keep the
names that users of other Kademlia implementations know. All other fields carry their unit in their name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from enum import Enum
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from multiaddr import Multiaddr
from multiaddr.exceptions import StringParseError

from prime_dht.entries.limits import Limits
from prime_dht.errors import ConfigError, ValidationError
from prime_dht.ids import US_PER_S, peer_from_text
from prime_dht.partition.parameters import PartitionParameters
from prime_dht.quantities import settle_numbers

_DEFAULT_NETWORK = "prime"
_DEFAULT_PREFIX = "/prime"

_MAX_K = 1000
"""Fifty times what others use; the routing table is to stay one that is looked through at every request."""

_MAX_UNIT_S = 86_400
"""What has expired stays for up to a unit."""


class Mode(Enum):
    """Whether other nodes may rely on this one (libp2p kad-dht specification, "Client and server mode")."""

    SERVER = "server"
    """Answers requests, is in others' routing tables, stores entries."""

    CLIENT = "client"
    """Only asks; never in anyone's routing table."""

    AUTO = "auto"
    """A server if the host listens on any address, else a client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtConfig:
    """How a node behaves in a swarm.

    Raises:
        ConfigError: a value is out of range, alpha exceeds k, or the replication factor is not in 1 ..= k.
    """

    k_bucket_size: int = 20
    """k: contacts in a bucket of the routing table, and peers that a lookup returns; 1 ..= 1000."""

    alpha: int = 3
    """Requests that a lookup keeps in flight; 1 ..= k."""

    replication_factor: int = 3
    """r: on how many of the servers closest to its key an entry is stored; 1 ..= k."""

    refresh_interval: float = 3600.0
    """Seconds after which a bucket that no lookup has touched is refreshed."""

    ttl: float = 86400.0
    """Seconds that an entry lives unless its put says otherwise; at most ``limits.max_ttl_s``."""

    read_quorum: int | None = None
    """Replicas that a get joins, 1 ..= r; ``None`` means the same as an acknowledgement, ⌊r/2⌋ + 1."""

    mode: Mode = Mode.AUTO
    """Server, client, or decided by whether the host listens."""

    network_id: str = _DEFAULT_NETWORK
    """Names the swarm. It is signed into every entry: entries of one network mean nothing in another.

    1 to 64 bytes of UTF-8, printable, without spaces and slashes: it is also part of the protocol ids.
    """

    protocol_prefix: str | None = None
    """The Kademlia protocol id is ``<prefix>/kad/1.0.0``; ``/ipfs`` gives that of the IPFS network.

    By default it is ``/prime`` in the network ``prime`` and ``/prime/<network_id>`` in any other, so that nodes of
    two networks do not talk at all.
    """

    unit_s: float = 900.0
    """Seconds that the partition's unit lasts, its smallest slice of time; entries retire at its ends. 1 ..= 86,400.

    A network parameter, as are ``factor``, ``sector_bits`` and ``limits.max_ttl_s``: nodes that differ in one refuse to
    sync with each other, and say in which.
    """

    factor: int = 9
    """A full slice of the partition lasts 2 to this power units; 1 ..= 53. A network parameter."""

    sector_bits: int = 9
    """The partition has 2 to this power sectors; 5 ..= 12. A network parameter.

    With three replicas 9 bits serve swarms of up to 3,000 nodes, 12 bits of up to 25,000: in larger ones nodes compare
    more than their share. Each bit more doubles the memory of sketches, 1.5 MiB at 9 bits.
    """

    pipelining: bool = True
    """Offer, and use towards peers that list it, ``<prefix>/rpc/1.0.0``: many requests in flight on one stream."""

    rpc_timeout_s: float = 10.0
    """Seconds within which a peer must answer one request, connecting included. What this process keeps it waiting,
    because it is connecting to many others, does not count."""

    operation_timeout_s: float = 60.0
    """Seconds within which a put, a get or a lookup ends, whatever peers do; the blocks of a blob come on top.

    For every 256 of its keys, a ``put_many`` or a ``get_many`` has so long.
    """

    cache_ttl_s: float = 5.0
    """Seconds for which a get without ``latest`` may answer from this node's own cache; 0 turns the cache off."""

    cache_bytes: int = 16 << 20
    """Upper bound on the bytes of values in that cache."""

    record_ttl_s: float = 48 * 3600.0
    """Seconds that a plain record (a namespace other than ``/prime/``) lives, as in go-libp2p."""

    record_republish_s: float = 22 * 3600.0
    """Seconds between re-puts of plain records and provider records by the node that made them."""

    provider_ttl_s: float = 48 * 3600.0
    """Seconds that a provider record lives."""

    blob_wait_s: float = 600.0
    """Seconds that a put of a blob waits for replicas to have fetched it, unless it says otherwise; 0 does not wait."""

    blobs_in_flight_bytes: int = 64 << 20
    """Upper bound on the bytes of blocks that are under way at a time, over all fetches; from 16 MiB on."""

    max_value_bytes: int = 64 << 20
    """A blob beyond this is not returned by a get as bytes: it goes to a file, or comes piece by piece."""

    allow_publishers: frozenset[str] | None = None
    """Peer ids (base58) whose entries this node takes; ``None`` means everybody's."""

    allow_peers: frozenset[str] | None = None
    """Peer ids (base58) of the nodes that this one talks to; ``None`` means all."""

    limits: Limits = field(default_factory=Limits)
    """Sizes, counts and times that this node enforces on its own entries and on everybody else's."""

    def __post_init__(self) -> None:
        _settle(self)
        _at_least(self, 1, "k_bucket_size", "alpha", "replication_factor")
        if self.k_bucket_size > _MAX_K:
            raise ConfigError(f"k_bucket_size must be at most {_MAX_K}, not {self.k_bucket_size}")
        if self.alpha > self.k_bucket_size:
            raise ConfigError(f"alpha ({self.alpha}) cannot exceed k_bucket_size ({self.k_bucket_size})")
        if self.replication_factor > self.k_bucket_size:
            raise ConfigError(
                f"replication_factor ({self.replication_factor}) cannot exceed k_bucket_size ({self.k_bucket_size})"
            )
        if self.read_quorum is not None and not 1 <= self.read_quorum <= self.replication_factor:
            raise ConfigError(f"read_quorum ({self.read_quorum}) must be in 1 ..= {self.replication_factor}")
        _positive(
            self,
            "refresh_interval",
            "ttl",
            "rpc_timeout_s",
            "operation_timeout_s",
            "record_ttl_s",
            "record_republish_s",
            "provider_ttl_s",
        )
        _at_least(self, 0, "cache_ttl_s", "cache_bytes", "blob_wait_s", "max_value_bytes")
        _at_least(self, 16 << 20, "blobs_in_flight_bytes")
        if not 1 <= self.unit_s <= _MAX_UNIT_S:
            raise ConfigError(f"unit_s must be in 1 ..= {_MAX_UNIT_S:,}, not {self.unit_s}")
        _ = self.partition  # which checks its numbers
        _peer_ids("allow_publishers", self.allow_publishers)
        _peer_ids("allow_peers", self.allow_peers)
        if self.ttl > self.limits.max_ttl_s:
            raise ConfigError(f"ttl ({self.ttl} s) exceeds max_ttl_s ({self.limits.max_ttl_s} s)")
        _fit_for_protocol_ids("network_id", self.network_id)
        prefix = self.protocol_prefix
        if prefix is not None:
            if not prefix.startswith("/"):
                raise ConfigError(f"protocol_prefix must start with a slash: {prefix!r}")
            for part in prefix[1:].split("/"):
                _fit_for_protocol_ids("each part of protocol_prefix", part)

    @property
    def write_quorum(self) -> int:
        """Durable replicas that make a put acknowledged: ⌊r/2⌋ + 1."""
        return self.replication_factor // 2 + 1

    @property
    def partition(self) -> PartitionParameters:
        """The parameters of the network's partition."""
        return PartitionParameters(
            unit_us=int(self.unit_s * US_PER_S), factor=self.factor, sector_bits=self.sector_bits
        )

    @property
    def kad_protocol(self) -> str:
        """The id of the protocol that every Kademlia node speaks.

        >>> DhtConfig().kad_protocol, DhtConfig(network_id="lab").kad_protocol
        ('/prime/kad/1.0.0', '/prime/lab/kad/1.0.0')
        """
        return f"{self._prefix}/kad/1.0.0"

    @property
    def rpc_protocol(self) -> str:
        """The id of the protocol that carries many requests at once."""
        return f"{self._prefix}/rpc/1.0.0"

    @property
    def sync_protocol(self) -> str:
        """The id of the protocol by which replicas compare what they store."""
        return f"{self._prefix}/sync/1.0.0"

    @property
    def blocks_protocol(self) -> str:
        """The id of the protocol by which nodes get the blocks of blobs from each other."""
        return f"{self._prefix}/blocks/1.0.0"

    @property
    def _prefix(self) -> str:
        if self.protocol_prefix is not None:
            return self.protocol_prefix
        return _DEFAULT_PREFIX if self.network_id == _DEFAULT_NETWORK else f"{_DEFAULT_PREFIX}/{self.network_id}"

    @classmethod
    def high_performance(cls) -> DhtConfig:
        """For large swarms: wider buckets and lookups, more replicas, two days of life."""
        return cls(k_bucket_size=32, alpha=8, replication_factor=5, refresh_interval=1800.0, ttl=172_800.0)

    @classmethod
    def low_latency(cls) -> DhtConfig:
        """For small swarms: narrow buckets, two replicas, half a day of life."""
        return cls(k_bucket_size=10, alpha=2, replication_factor=2, refresh_interval=7200.0, ttl=43_200.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """A node of its own: its addresses, its data, its first peers.

    Raises:
        ConfigError: a value is out of range, or an address is no multiaddr, cannot be listened on, or dialled by those
            whom it is told, or is there twice.
    """

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    """Multiaddrs to listen on, each of an IP address and a TCP port; none makes a node that only dials. Port 0 lets the
    system choose."""

    peers: tuple[str, ...] = ()
    """Multiaddrs of nodes to join through, each ending in ``/p2p/<peer id>``."""

    announce: tuple[str, ...] = ()
    """Multiaddrs to tell others instead of those the node listens on, each of an IP address or a DNS name and a TCP
    port. A server behind a NAT, or in a container with a network of its own, needs them: others store nothing on one
    that they cannot dial."""

    mdns: bool = False
    """Find other nodes of the network on the local network by multicast, and be found."""

    data_dir: Path | None = None
    """Where identity and entries are kept; ``None`` keeps nothing: a new identity, entries in memory."""

    synchronous: Literal["FULL", "NORMAL"] = "FULL"
    """SQLite's setting. FULL: an acknowledged put survives power loss. NORMAL: only the death of the process."""

    blocks_dir: Path | None = None
    """Where the blocks of blobs are kept; by default ``blocks`` in the data directory, or in memory without one."""

    max_blocks_bytes: int = 64 << 30
    """Upper bound on the bytes of blocks that are kept; in memory 256 MiB, if that is less."""

    redis_url: str | None = None
    """A Redis server, ``redis://host:port``, that keeps the entries instead of a file; needs the extra ``redis``."""

    fast_transport: bool = True
    """Use prime_dht's own Noise transport phase and Yamux muxer; ``False`` uses py-libp2p's. The wire is the same."""

    max_connections: int = 1000
    """Connections, in and out, at most."""

    low_water_connections: int = 32
    """Connections that stay open though nobody uses them; of more, those idle for longest are closed after minutes."""

    dht: DhtConfig = field(default_factory=DhtConfig)
    """How the node behaves in the swarm."""

    def __post_init__(self) -> None:
        _settle(self)
        _paths(self, "data_dir", "blocks_dir")
        _at_least(self, 1, "max_connections")
        _at_least(self, 0, "low_water_connections", "max_blocks_bytes")
        _multiaddrs("listen", self.listen)
        _multiaddrs("announce", self.announce)
        if self.synchronous not in ("FULL", "NORMAL"):
            raise ConfigError(f"synchronous is FULL or NORMAL, not {self.synchronous!r}")


def node_config(given: NodeConfig | None) -> NodeConfig:
    """What is given, or else the configuration of a node that is nowhere told otherwise.

    Raises:
        ConfigError: it is something else, such as a :class:`DhtConfig`.
    """
    if given is None:
        return NodeConfig()
    if not isinstance(given, NodeConfig):
        raise ConfigError(f"config is a NodeConfig, not {type(given).__name__}; a DhtConfig is its dht")
    return given


def dht_config(given: DhtConfig | None) -> DhtConfig:
    """As :func:`node_config`, of how a node behaves in a swarm."""
    if given is None:
        return DhtConfig()
    if not isinstance(given, DhtConfig):
        raise ConfigError(f"config is a DhtConfig, not {type(given).__name__}; that of a NodeConfig is its dht")
    return given


def fault_in_listening_on(address: Multiaddr) -> str | None:
    """Why no node can listen on an address, as the rest of a sentence about it; ``None`` if one may.

    What ends in a peer id is for the host to check, which knows its own.

    >>> fault_in_listening_on(Multiaddr("/ip4/127.0.0.1"))
    'has no port: a node listens on an IP address and a TCP port, such as /ip4/127.0.0.1/tcp/4001'
    """
    match [protocol.name for protocol in address.protocols()]:
        case ["ip4" | "ip6", "tcp"] | ["ip4" | "ip6", "tcp", "p2p"]:
            return None
        case ["ip4" | "ip6"]:
            fault = "has no port"
        case ["ip4" | "ip6", *_]:
            fault = "is not TCP alone"
        case _:
            fault = "does not begin with an IP address"
    return f"{fault}: a node listens on an IP address and a TCP port, such as /ip4/127.0.0.1/tcp/4001"


def fault_in_announcing(address: Multiaddr) -> str | None:
    """Why nobody can dial an address, as the rest of a sentence about it; ``None`` if somebody may.

    Whether the peer id that it may end in is the node's own is for the host to check, which knows it.

    >>> fault_in_announcing(Multiaddr("/dns4/node.example/tcp/0"))
    'has no port: others dial an IP address or a DNS name and a TCP port, such as /dns4/node.example/tcp/4001'
    """
    parts = [(protocol.name, value) for protocol, value in address.items()]
    if parts and parts[-1][0] == "p2p":
        parts.pop()
    match parts:
        case [("ip4" | "ip6", host), *_] if (ip := ip_address(host)).is_unspecified or ip.is_multicast:
            fault = "leads to no one machine"
        case [("ip4" | "ip6" | "dns" | "dns4" | "dns6", _)] | [_, ("tcp" | "udp", "0"), *_]:
            fault = "has no port"
        case [("ip4" | "ip6" | "dns" | "dns4" | "dns6", _), ("tcp", _), *rest]:
            if not any(name.startswith("p2p") for name, _ in rest):
                return None
            fault = "leads through another peer"
        case [("ip4" | "ip6" | "dns" | "dns4" | "dns6", _), *_]:
            fault = "is not TCP"
        case _:
            fault = "does not begin with an IP address or a DNS name"
    return f"{fault}: others dial an IP address or a DNS name and a TCP port, such as /dns4/node.example/tcp/4001"


def _settle(config: DhtConfig | NodeConfig) -> None:
    """Make of each value what its field is declared as, where it is plain what was meant: no type checker looks at
    notebooks. Paths are for :func:`_paths`."""
    settle_numbers(config)
    for each in fields(config):
        name, given = each.name, getattr(config, each.name)
        match each.type:
            case "bool":
                if given not in (False, True):
                    raise ConfigError(f"{name} is True or False, not {given!r}")
                object.__setattr__(config, name, bool(given))
            case "str" | "str | None":
                if not isinstance(given, str) and (given is not None or each.type == "str"):
                    raise ConfigError(f"{name} is text, not {type(given).__name__}")
            case "tuple[str, ...]":
                object.__setattr__(config, name, tuple(_texts(name, given)))
            case "frozenset[str] | None":
                if given is not None:
                    object.__setattr__(config, name, frozenset(_texts(name, given)))
            case "Mode":
                if given not in (choices := [choice.value for choice in Mode]) and not isinstance(given, Mode):
                    raise ConfigError(f"{name} is a Mode, or {' or '.join(choices)}, not {given!r}")
                object.__setattr__(config, name, Mode(given))
            case "DhtConfig" | "Limits":
                if not isinstance(given, DhtConfig if each.type == "DhtConfig" else Limits):
                    raise ConfigError(f"{name} is a {each.type}, not {type(given).__name__}")


def _texts(name: str, given: object) -> Iterator[str]:
    """Several texts; py-libp2p's addresses become such."""
    if isinstance(given, str | bytes | Multiaddr) or not isinstance(given, Iterable):
        raise ConfigError(f"{name} is a list of texts, not {type(given).__name__}")
    for each in given:
        if not isinstance(each, str | Multiaddr):
            raise ConfigError(f"{name} is a list of texts, but in it is {type(each).__name__}")
        yield str(each) if isinstance(each, Multiaddr) else each


def _paths(config: NodeConfig, *names: str) -> None:
    """Take text for a path: whoever is not told so by a type checker writes it."""
    for name in names:
        given = getattr(config, name)
        if given is None:
            continue
        if not isinstance(given, str | os.PathLike):
            raise ConfigError(f"{name} is a path, as text or a pathlib.Path, not {type(given).__name__}")
        if not os.fspath(given):
            raise ConfigError(f"{name} is a path, and not empty")
        object.__setattr__(config, name, Path(given))


def _multiaddrs(name: str, addresses: tuple[str, ...]) -> None:
    for place, address in enumerate(addresses):
        try:
            multiaddr = Multiaddr(address)
        except StringParseError as error:
            raise ConfigError(f"{name}: {address} is not a multiaddr: {error.message}") from error
        if fault := (fault_in_listening_on if name == "listen" else fault_in_announcing)(multiaddr):
            raise ConfigError(f"{name}: {address or repr(address)} {fault}")
        if address in addresses[:place]:
            raise ConfigError(f"{name}: {address} is there twice")


def _peer_ids(name: str, texts: frozenset[str] | None) -> None:
    for text in texts or ():
        try:
            peer_from_text(text)
        except ValidationError as error:
            raise ConfigError(f"{name}: {error}") from error


def _fit_for_protocol_ids(name: str, text: str) -> None:
    if not (text.isprintable() and 1 <= len(text.encode()) <= 64) or {" ", "/"} & set(text):
        raise ConfigError(f"{name} must be 1 to 64 bytes of printable text without spaces and slashes, not {text!r}")


def _at_least(config: DhtConfig | NodeConfig, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not value >= least:
            raise ConfigError(f"{name} must be at least {least}, not {value}")


def _positive(config: DhtConfig | NodeConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name} must be a positive number, not {value}")
