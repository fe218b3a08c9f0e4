"""The operations of a node, for threads that wait: :class:`BlockingDHT`.

Each has the parameters and the words of its namesake in :class:`prime_dht.PrimeDHT`; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

from prime_dht.blocking.blobs import BlockingBlobs
from prime_dht.blocking.entries import Entries
from prime_dht.blocking.subscription import Events, subscribed

if TYPE_CHECKING:
    from libp2p.peer.id import ID
    from libp2p.peer.peerinfo import PeerInfo
    from multiaddr import Multiaddr

    from prime_dht.ids import PeerId
    from prime_dht.kad.lookup import LookupResult
    from prime_dht.node.arguments import PeerLike
    from prime_dht.node.dht import PrimeDHT
    from prime_dht.node.results import Health, Holding, PeerStatus, Provider, RecordReceipt, Stats
    from prime_dht.node.rounds import SyncReport
    from prime_dht.storage.base import Expired

T = TypeVar("T")


class BlockingDHT(Entries):
    """A node for code without trio; :func:`prime_dht.connect` makes one. Any number of threads may use it.

    Use it as ``with``, or close it, or leave that to Python. It can be used in forked children and be pickled, and then
    is a client with an identity of its own there. Beside the parameters of :class:`prime_dht.PrimeDHT`, operations take

    - ``timeout``: seconds after which a :class:`QueryError` is raised. Without it the deadlines of the node's
      configuration hold alone: a put, a get or a lookup ends within ``operation_timeout_s``, ``put_many`` and
      ``get_many`` within that time for every 256 keys, and blobs have times of their own.
    - ``wait``: if ``False``, what is returned is a :class:`concurrent.futures.Future` of the result, as soon as there
      is a place for the call: at once, unless :data:`~prime_dht.blocking.node_thread.CALLS_AT_ONCE` are under way.
      Then all that was given may change, such as a buffer that is put or a dict of metadata, but a file must not.
      Futures that are not done when the client is closed fail. Their callbacks run in the node's thread, so they should
      be brief, and cannot wait.

    What is used first in a forked child, or of a copy that was unpickled, joins first, also with ``wait=False``; a
    ``timeout`` counts that as well.
    """

    @property
    def blobs(self) -> BlockingBlobs:
        """Values of any size, by their CIDs."""
        return BlockingBlobs(self)

    # Records and providers

    def put_record(self, key: bytes, value: bytes, *, timeout: float | None = None) -> RecordReceipt:
        """Store a plain record of a namespace other than ``/prime/``; see :mod:`prime_dht.node.records`."""
        return self.call(lambda dht: dht.put_record(key, value), timeout=timeout)

    def get_record(self, key: bytes, *, quorum: int | None = None, timeout: float | None = None) -> bytes | None:
        """The best valid record under a key, or ``None``."""
        return self.call(lambda dht: dht.get_record(key, quorum=quorum), timeout=timeout)

    def provide(self, cid: bytes | str, announce: bool = True, *, timeout: float | None = None) -> RecordReceipt:
        """Announce that this node has the content of a CID or multihash, now and as long as it runs.

        Args:
            announce: whether to tell others now. If not, they are told at the next republish.

        Raises:
            ValidationError: it is neither a CID nor a multihash.
        """
        return self.call(lambda dht: dht.provide(cid, announce), timeout=timeout)

    def stop_providing(self, cid: bytes | str, *, timeout: float | None = None) -> None:
        """Announce it no longer."""
        self.call(lambda dht: dht.stop_providing(cid), timeout=timeout)

    def find_providers(self, cid: bytes | str, *, count: int = 20, timeout: float | None = None) -> list[Provider]:
        """Up to ``count`` peers that say they have the content of a CID or multihash."""
        return self.call(lambda dht: dht.find_providers(cid, count=count), timeout=timeout)

    # Peers

    def find_peer(self, peer_id: PeerLike, *, timeout: float | None = None) -> PeerInfo | None:
        """A peer's addresses, or ``None`` if nobody knows it."""
        return self.call(lambda dht: dht.find_peer(peer_id), timeout=timeout)

    def find_closest(self, key: bytes | str | ID, *, timeout: float | None = None) -> LookupResult:
        """The ``k`` servers closest to a key or a peer id, with the path that led there."""
        return self.call(lambda dht: dht.find_closest(key), timeout=timeout)

    def bootstrap(self, *, timeout: float | None = None) -> int:
        """Join now, through the bootstrap peers and those remembered; how many peers are known then.

        The node does this by itself when it starts, and again until it knows somebody.

        Raises:
            QueryError: there are bootstrap peers, but none of them answers.
        """
        return self.call(lambda dht: dht.bootstrap(), timeout=timeout)

    def add_peer(self, address: str | Multiaddr, *, timeout: float | None = None) -> PeerId:
        """Dial a peer by its multiaddr and take it into the routing table.

        Raises:
            ValidationError: the multiaddr is malformed or names no peer.
            QueryError: it cannot be reached, or serves no Kademlia.
        """
        return self.call(lambda dht: dht.add_peer(address), timeout=timeout)

    def sync(self, peer_id: PeerLike, *, dry_run: bool = False, timeout: float | None = None) -> SyncReport:
        """Carry out one round of sync with a peer whose address is known; the node does this by itself all the time.

        Args:
            dry_run: only compare.

        Raises:
            QueryError: the peer cannot be reached or does not sync, or this node cannot read its store in time.
        """
        return self.call(lambda dht: dht.sync(peer_id, dry_run=dry_run), timeout=timeout)

    def holding_of(self, peer_id: PeerLike, *, timeout: float | None = None) -> Holding:
        """How much of what it is to store a peer holds, as it says itself; of this node, see :meth:`health`.

        Raises:
            QueryError: the peer cannot be reached or does not sync, or it or this node has not read its store yet.
        """
        return self.call(lambda dht: dht.holding_of(peer_id), timeout=timeout)

    def ping(self, peer_id: PeerLike, *, timeout: float | None = None) -> float:
        """Seconds from a request to the answer of a peer whose address is known; QueryError if none comes."""
        return self.call(lambda dht: dht.ping(peer_id), timeout=timeout)

    def peers(self, *, timeout: float | None = None) -> list[PeerStatus]:
        """The peers in the routing table, nearest first."""
        return self._look(lambda dht: dht.peers(), timeout)

    @property
    def peer_id(self) -> PeerId:
        """This node's own."""
        return self._look(lambda dht: dht.peer_id, None)

    def addresses(self, *, timeout: float | None = None) -> list[str]:
        """Full multiaddrs, each ending in ``/p2p/<peer id>``, at which this node can be dialled."""
        return self._look(lambda dht: dht.addresses(), timeout)

    # Looking after it

    def health(self, *, timeout: float | None = None) -> Health:
        """Peers, keys, bucket sizes, the target arc, and warnings in plain words."""
        return self.call(lambda dht: dht.health(), timeout=timeout)

    def stats(self, *, timeout: float | None = None) -> Stats:
        """Counters since the node started."""
        return self.call(lambda dht: dht.stats(), timeout=timeout)

    def cleanup_expired(self, *, timeout: float | None = None) -> Expired:
        """Drop what has expired now; the node does this by itself every minute."""
        return self.call(lambda dht: dht.cleanup_expired(), timeout=timeout)

    def subscribe(self) -> AbstractContextManager[Events]:
        """Events from here on: ``with dht.subscribe() as events: for event in events: ...``"""
        return subscribed(self._open())

    def _look(self, at: Callable[[PrimeDHT], T], timeout: float | None) -> T:
        async def look(dht: PrimeDHT) -> T:
            return at(dht)

        return self.call(look, timeout=timeout)
