"""One connection for all file systems of a process that are told of the same swarm.

fsspec makes a file system per thread. Each with a node of its own would have an identity of its own, unable to replace
what another thread wrote; and of a data directory there can be one node only.

A connection is made when it is first used, and lasts as long as the process. In a forked child, and where a pickled
file system arrives, it is a client of the same swarm with an identity of its own (:mod:`prime_dht.blocking`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from prime_dht.blocking import BlockingDHT
from prime_dht.blocking.connecting import JOINING_S
from prime_dht.config import DhtConfig, Mode, NodeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a swarm is joined: as :func:`prime_dht.connect` takes it."""

    peers: tuple[str, ...]
    data_dir: Path | None
    network_id: str | None

    @property
    def destination(self) -> Way:
        """The same for all ways that share a connection: for a data directory there is one, whatever the peers."""
        return self if self.data_dir is None else replace(self, peers=(), data_dir=self.data_dir.absolute())


class Connection(BlockingDHT):
    """A client that is told of peers again by everybody who asks for it."""

    def join_by(self, peers: tuple[str, ...]) -> None:
        """Take these peers when it next joins: those that it has may be mistaken, and then it has not joined yet."""
        with self._lock:
            if not set(peers) <= set(self._config.peers):
                self._config = replace(self._config, peers=peers)


_connections: dict[Way, Connection] = {}


def connection(way: Way) -> Connection:
    """The client that joins this way, or has.

    Raises:
        ConfigError: a setting is out of range.
    """
    dht = _connections.get(way.destination) or keep(way, Connection(_config(way), None, JOINING_S))
    dht.join_by(way.peers)
    return dht


def keep(way: Way, dht: Connection) -> Connection:
    """Take a client for all who join this way, unless there is one."""
    return _connections.setdefault(way.destination, dht)


def _config(way: Way) -> NodeConfig:
    dht = DhtConfig(mode=Mode.CLIENT)
    return NodeConfig(
        listen=(),
        peers=way.peers,
        data_dir=way.data_dir,
        dht=dht if way.network_id is None else replace(dht, network_id=way.network_id),
    )
