"""The peers this node knows: the routing table, fed by what peers prove, and kept true by checks.

A peer enters the table only when it has answered a request of ours, which shows that it is in server mode and speaks
the protocol, and when it can be dialled: who is behind a NAT or a firewall reaches us, but nobody finds there what it
stores. A peer that sends us a request may be a client, so it is first *probed*: a FIND_NODE for itself, which a server
answers with itself and the addresses it listens on (go-libp2p admits in the same way), at which it is dialled back. A
stranger that names nobody at all is not admitted: it would only be a dead end. (rust-libp2p does not name itself, so in
a swarm of two its nodes are admitted when they are bootstrap peers or added by hand.)

Who answers a probe names its neighbours. Those of them that are this node's neighbours as well, and new to it, are
probed in turn: so when the members of two swarms meet, their neighbourhoods become one in a few steps, and no lookup is
needed. How many are probed on others' word is bounded too (``NAMED_AT_MOST``).

A peer that was probed is left alone for ``PROBE_AGAIN_S``, whatever came of it. But a server that did not answer, and
sends a request then, is back from somewhere: it is probed once more at once. And one in the table that connects anew
may have been restarted on another port: it is asked where it listens, or others would be told where it was. How many
probes are in flight, and how many wait, is bounded, so strangers can neither make this node flood others nor fill its
memory.

Whether a peer keeps entry sets, so that it can be a replica of ``/prime/`` keys, is said in every reply of ours
(``replicates``); peers that do not know the extension never say it. With every change of that, and of who is in the
table, this node's arc (:mod:`prime_dht.node.own_arc`) is seen anew at once.

Who loses the last peer in its table may be the one that is cut off: nobody takes leave, so it cannot tell that from the
others being gone. It does not know its place any more, as if it had not joined (:mod:`prime_dht.node.maintenance`).
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import trio

from prime_dht.config import DhtConfig
from prime_dht.errors import NoTurnError, PrimeDHTError, QueryError, RefusedError, RemoteProtocolError, UnsentError
from prime_dht.events import PeerJoined, PeerLeft
from prime_dht.ids import KadKey, PeerId, kad_key, short
from prime_dht.kad.contact import UNPLACED, Contact, subnets_of
from prime_dht.kad.keyspace import Prefix, closest, common_prefix_length
from prime_dht.kad.replicas import syncs
from prime_dht.kad.routing_table import Added, CheckFirst, Refreshed, Rejected, RoutingTable, Waiting
from prime_dht.net.addresses import address_text
from prime_dht.net.network import Network, OnOutcome
from prime_dht.node.acquaintances import Acquaintances
from prime_dht.node.clock import Clock
from prime_dht.node.contacts import Contacts, tells_more
from prime_dht.node.failures import Failures
from prime_dht.node.feed import Feed
from prime_dht.node.own_arc import OwnArc
from prime_dht.wire.kad import Connection, FindNode, PeerRecord, Reply, Request

if TYPE_CHECKING:
    from trio_typing import TaskStatus

logger = logging.getLogger(__name__)

V = TypeVar("V")

JOIN_K = 6
"""Servers in a far bucket with which a node that joins is content: those that a lookup there finds, or that are probed
because they asked first. Enough to route by, and twice the default replication factor, so that the target arc is right.
Finding 20 for each bucket would make a join cost some hundred connections; the regular refresh does that, an interval
later."""

PROBES_AT_ONCE = 16
"""Probes in flight; each is a small request over a connection that mostly exists."""

PROBES_WAITING = 1000
"""Peers waiting to be probed; of a flood of newcomers the rest is left until they send another request."""

PROBE_AGAIN_S = 60.0
"""Seconds before a peer that sends requests is probed again."""

PROBE_TIMEOUT_S = 5.0
"""Seconds for a probe's dial and answer: strangers that hang must not hold up honest newcomers for long."""

NAMED_AT_MOST = 4
"""Times k: neighbours that are probed within ``PROBE_AGAIN_S`` because others named them. Two swarms that meet have k
neighbours each for one of their nodes; a liar, who can name new peers for ever, is not followed further."""

STRANGERS_NOTED = 64
"""Of the peers without a place in the table that sent requests lately, those that are kept in mind."""

NOTED_FOR_S = 1.0
"""For so long what was noted when a peer answered need not be noted again."""

PEERS_NOTED = 20_000
"""Peers of which something is kept outside of the routing table; of more, what was noted longest ago is forgotten."""


@dataclass(slots=True)
class _Probe:
    """The last probe of a peer.

    Attributes:
        is_second: the one before was within ``PROBE_AGAIN_S``.
    """

    at_s: float
    is_second: bool
    has_failed: bool = False


@dataclass(frozen=True, slots=True)
class _Noted:
    """What was made of a peer's answer, and when."""

    at_s: float
    replicates: bool
    contact: Contact


class Neighbourhood:
    """Whom this node knows.

    Attributes:
        table: the routing table.
        own_arc: what this node is to store, by those in the table.
        local: this node's kad key.
        has_looked_around: whether a lookup of this node's own place has ended, or it is the first of its swarm; and it
            has not lost everybody since.
        arrival: the next time that a peer enters the table.
        loss: the next time that the last peer fails, and leaves the table empty.
        lost_all_at_s: when that was last, if it ever was.
        acquaintances: when peers were heard from.
        strangers: peers without a place in the table that sent a request, the latest last; for
            :mod:`prime_dht.node.strangers`.
    """

    def __init__(self, network: Network, config: DhtConfig, clock: Clock, feed: Feed, *, is_server: bool) -> None:
        self.local: KadKey = kad_key(network.local)
        self.table = RoutingTable(self.local, config.k_bucket_size, refresh_interval_s=config.refresh_interval)
        self.own_arc = OwnArc(self.table, config, clock)
        self.is_server = is_server
        self._own = Contact(peer=network.local, kad_key=self.local, syncs=True)
        self._network = network
        self._config = config
        self._clock = clock
        self._feed = feed
        self.arrival = trio.Event()
        self.loss = trio.Event()
        self.lost_all_at_s: float | None = None
        self.acquaintances = Acquaintances()
        self.strangers: OrderedDict[PeerId, None] = OrderedDict()
        self._known_region: Prefix | None = None
        self.has_looked_around = False
        self._named = 0
        self._named_until_s = -math.inf
        self._contacts = Contacts()
        self._replicating: OrderedDict[PeerId, bool] = OrderedDict()  # whether they do, of those that answered
        self._noted: OrderedDict[PeerId, _Noted] = OrderedDict()
        self._probed: OrderedDict[PeerId, _Probe] = OrderedDict()
        self._failures = Failures()
        self._waiting: set[PeerId] = set()  # to be probed
        self._to_probe, self._probes = trio.open_memory_channel[PeerId](PROBES_WAITING)
        network.tell_of_dials(self.dialled_by)

    # What is known

    def own_contact(self) -> Contact | None:
        """This node as a replica, if it is a server."""
        return self._own if self.is_server else None

    def nearest_replicas(self, key: KadKey, replication: int) -> list[Contact]:
        """The ``replication`` nearest of the servers known that keep entry sets and this node, if it is one."""
        near = self.table.near(key, replication, where=syncs)
        return closest((self._own, *near) if self.is_server else near, key, replication)

    def contact(self, peer: PeerId, addresses: Iterable[bytes] | None = None) -> Contact:
        """A peer as a contact, at the addresses given or, without any, at those known."""
        known = tuple(addresses) if addresses is not None else self._network.addresses_of(peer)
        return self._contacts.get(peer, known, syncs=self._replicating.get(peer, False))

    def record(self, contact: Contact) -> PeerRecord:
        """A contact as a reply shows it."""
        connection = Connection.CONNECTED if self._network.is_connected(contact.peer) else Connection.NOT_CONNECTED
        return PeerRecord(contact.peer, contact.addresses, connection)

    def servers_known(self, *, at_most: int) -> int:
        """How many servers can be replicas of ``/prime/`` keys, this node included if it is one, up to so many."""
        return self.table.count(syncs, at_most=at_most - self.is_server) + self.is_server

    def knows_all_near(self, key: KadKey) -> bool:
        """Whether the table holds every server in the neighbourhood of a key, so that its replicas can be told.

        A newcomer meets the ``k`` servers closest to it. So where the region that was once looked up has come to hold
        ``k`` others or more, there may be some that never met this node: it is sure of the ``k`` nearest alone.
        """
        if self._known_region is None or not self._known_region.covers(key):
            return False
        if len(self.table) < self.table.k:
            return True
        nearest = self.table.find_closest(self.local)
        return common_prefix_length(self.local, key) > common_prefix_length(self.local, nearest[-1].kad_key)

    def looked_up_itself(self, region: Prefix | None) -> None:
        """A lookup of this node's own kad key found every server in a region, or none for certain.

        Those that join the region later look themselves up as well, and so are heard from.
        """
        self._known_region = region
        self.has_looked_around = True

    def has_met_anybody(self) -> bool:
        """Whether this node knows a server, or has looked for one and is the first."""
        return self.has_looked_around or len(self.table) > 0

    # What peers prove

    async def ask(self, contact: Contact, request: Request, *, on_turn: Callable[[], None] | None = None) -> Reply:
        """Send a request, and note what the answer, or its absence, says of the peer.

        Args:
            on_turn: see :meth:`prime_dht.net.network.Network.call`.

        Raises:
            QueryError: no answer.
            RemoteProtocolError: a wrong one.
        """
        asked_at_s = self._clock.monotonic_s()
        try:
            reply = await self.tell(contact, request, on_turn=on_turn)
        except (QueryError, RemoteProtocolError) as error:
            self.failed(contact.peer, error, asked_at_s=asked_at_s)
            raise
        self.answered(contact.peer, reply)
        return reply

    def post(self, contact: Contact, request: Request, then: OnOutcome, *, now_s: float) -> bool:
        """As :meth:`ask`, without waiting; ``False``, with nothing sent, if that is not possible just now.

        Args:
            then: is given the reply or the error, maybe before this returns. It must not block.
        """

        def answered(outcome: Reply | QueryError | RemoteProtocolError) -> None:
            if isinstance(outcome, Reply):
                self.answered(contact.peer, outcome)
            else:
                self.failed(contact.peer, outcome, asked_at_s=now_s)
            then(outcome)

        self._network.learn_addresses(contact.peer, contact.addresses, source="kad")
        return self._network.post(contact.peer, request, timeout_s=self._config.rpc_timeout_s, then=answered)

    async def tell(self, contact: Contact, request: Request, *, on_turn: Callable[[], None] | None = None) -> Reply:
        """As :meth:`ask`, but nothing is noted: a peer refuses a record, or a provider, by resetting the stream."""
        self._network.learn_addresses(contact.peer, contact.addresses, source="kad")
        timeout_s = self._config.rpc_timeout_s
        return await self._network.call(contact.peer, request, timeout_s=timeout_s, on_turn=on_turn)

    def answered(self, peer: PeerId, reply: Reply) -> None:
        """A peer answered a request: it is a server, and it is alive.

        Those of whom that was noted just now and who have a place are left as they are: there may be thousands of
        answers in a second.
        """
        now_s = self._clock.monotonic_s()
        noted, before = self._noted.get(peer), self.table.get(peer)
        if (
            noted is not None
            and now_s - noted.at_s < NOTED_FOR_S
            and noted.replicates == reply.replicates
            and before is noted.contact
        ):
            return
        self._failures.forget(peer)
        self.acquaintances.heard(peer, self._clock.now_us())
        _note(self._replicating, peer, reply.replicates)
        if before is None and not self._network.is_dialable(peer):
            if not self._probed_lately(peer):
                self.probe(peer)
            return
        known = self.contact(peer)
        remote = self._network.remote_address_of(peer)
        if remote is not None:
            subnets = subnets_of((remote,))
        elif before is not None or self._network.is_connected(peer):
            subnets = (before or known).subnets
        else:  # it is gone again, and where it claims to be may be anywhere
            subnets = (UNPLACED,)
        contact = known if known.subnets == subnets else replace(known, subnets=subnets)
        _note(self._noted, peer, _Noted(now_s, reply.replicates, contact))
        match self.table.seen(contact, now_s):
            case Added():
                self._joined(contact)
            case CheckFirst(candidate):
                self.probe(candidate.peer)
            case Refreshed():
                if before is not None and before.syncs != contact.syncs:
                    self.own_arc.observe()
            case Rejected(refusal, left, successor):
                if left:
                    self._left(peer, refusal.value)
                if successor is not None:
                    self._joined(successor)
            case Waiting():
                pass

    def failed(self, peer: PeerId, reason: PrimeDHTError | str, *, asked_at_s: float = math.inf) -> None:
        """A peer did not answer a request, or answered wrongly. (That it disconnected would not be a failure.)"""
        if isinstance(reason, UnsentError | RefusedError):
            return
        self._noted.pop(peer, None)
        now_s, is_replica = self._clock.monotonic_s(), self._replicating.get(peer, False)
        # Who is connected, or answered, is there, and will not do better in a moment.
        is_gone = isinstance(reason, QueryError) and not self._network.is_connected(peer)
        self._failures.note(peer, now_s, is_replica=is_replica, is_gone=is_gone, asked_at_s=asked_at_s)
        had_place = self.table.get(peer) is not None
        successor = self.table.remove(peer)
        if not had_place:  # it may have been waiting for one
            return
        self._left(peer, str(reason))
        if successor is not None:
            self._joined(successor)
        elif not len(self.table):
            self._lost_all()

    def heard_from(self, peer: PeerId) -> None:
        """A peer sent a request, so it is alive. Probe it, if it could have a place and was not probed lately.

        In a large swarm most who ask lie in far buckets, which are full: probing them all would double the traffic. So
        would filling those buckets while many join; ``JOIN_K`` are enough there until a refresh finds more.
        """
        self._failures.forget(peer)
        self.acquaintances.heard(peer, self._clock.now_us())
        if self.table.get(peer) is not None or (self._probed_lately(peer) and not self._is_back(peer)):
            return
        self.strangers[peer] = None
        self.strangers.move_to_end(peer)
        if len(self.strangers) > STRANGERS_NOTED:
            self.strangers.popitem(last=False)
        if self._is_wanted(kad_key(peer)):
            self.probe(peer)

    def dialled_by(self, peer: PeerId) -> None:
        """A peer connected to this node. One in the table, or that failed a moment ago, may have moved: ask it."""
        if self.table.get(peer) is not None or self._has_failed_lately(peer):
            self.probe(peer)

    def heard_of(self, records: Iterable[PeerRecord], *, now_s: float) -> list[Contact]:
        """Peers that a reply names, as contacts; without this node, and who failed it and is left alone for a while.

        Somebody may have named them at false addresses: who is named at another is not left alone.
        """
        local, failures, known_of = self._network.local, self._failures, self._network.addresses_of
        return [
            self.contact(one.peer, one.addresses)
            for one in records
            if one.peer != local
            and (not failures.is_left_alone(one.peer, now_s) or tells_more(one, known_of(one.peer)))
        ]

    def probe(self, peer: PeerId) -> None:
        """Have a peer probed soon, if there is room, and unless it waits for that already."""
        if peer in self._waiting or len(self._waiting) == PROBES_WAITING:
            return
        self._waiting.add(peer)
        self._to_probe.send_nowait(peer)
        _note(self._probed, peer, _Probe(self._clock.monotonic_s(), is_second=self._probed_lately(peer)))

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out probes until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(PROBES_AT_ONCE):
                nursery.start_soon(self._probe_each)
            task_status.started()

    async def _probe_each(self) -> None:
        async for peer in self._probes:
            self._waiting.discard(peer)
            try:
                await self.meet(peer)
            except NoTurnError:
                self._probed.pop(peer, None)  # as soon as it asks for something again
            except (QueryError, RemoteProtocolError) as error:
                self.strangers.pop(peer, None)
                if peer in self._probed:
                    self._probed[peer].has_failed = True
                logger.debug("peer %s does not serve Kademlia, or nobody can dial it: %s", short(peer), error)

    async def introduce(self, peer: PeerId) -> None:
        """Ask a peer that this node's owner, or the node's own memory, vouches for, for itself, and admit it.

        Raises:
            QueryError: it does not answer.
            RemoteProtocolError: it answers wrongly.
        """
        self._network.forgive(peer)
        await self._introduce(peer, self._config.rpc_timeout_s, is_stranger=False)

    async def meet(self, peer: PeerId) -> None:
        """As :meth:`introduce`, for a peer that nobody vouches for, or somebody on the network who may lie.

        Raises:
            QueryError: it does not answer, or names nobody.
            RemoteProtocolError: it answers wrongly.
        """
        await self._introduce(peer, min(PROBE_TIMEOUT_S, self._config.rpc_timeout_s), is_stranger=True)

    async def _introduce(self, peer: PeerId, timeout_s: float, *, is_stranger: bool) -> None:
        asked_at_s = self._clock.monotonic_s()
        try:
            reply = await self._network.call(peer, FindNode(peer), timeout_s=timeout_s)
            if is_stranger and not reply.closer and self.table.get(peer) is None:
                raise QueryError(f"peer {short(peer)} names neither itself nor anybody else")
            addresses = next((record.addresses for record in reply.closer if record.peer == peer), ())
            self._network.learn_addresses(peer, addresses, source="identify")
            await self._network.dial_back(peer)
        except (QueryError, RemoteProtocolError) as error:
            if self.table.get(peer) is not None:  # of others it says only that they do not serve, as clients do not
                self.failed(peer, error, asked_at_s=asked_at_s)
            raise
        self._noted.pop(peer, None)  # with other addresses it is not what was noted
        self.answered(peer, reply)
        if self.has_looked_around:  # else a lookup is about to meet them, asking fewer
            self._probe_neighbours_among(reply.closer)

    def _probe_neighbours_among(self, named: Iterable[PeerRecord]) -> None:
        """Have those probed that are new and would be among the ``k`` nearest."""
        radius, now_s = self._radius(), self._clock.monotonic_s()
        if now_s >= self._named_until_s:
            self._named, self._named_until_s = 0, now_s + PROBE_AGAIN_S
        for record in named:
            peer = record.peer
            is_new = self.table.get(peer) is None and peer != self._network.local and not self._probed_lately(peer)
            if not is_new or kad_key(peer) ^ self.local > radius or self._has_failed_lately(peer):
                continue
            if self._named >= NAMED_AT_MOST * self.table.k:
                return
            self._named += 1
            self._network.learn_addresses(peer, record.addresses, source="kad")
            self.probe(peer)

    def _is_wanted(self, key: KadKey) -> bool:
        """Whether a stranger at ``key`` would be one of the ``k`` nearest, or make a bucket fit to route by."""
        if not self.table.has_room(key):
            return False
        size = self.table.bucket_sizes()[common_prefix_length(self.local, key)]
        return size < JOIN_K or key ^ self.local < self._radius()

    def _radius(self) -> float:
        """The distance of the ``k``-th nearest peer in the table."""
        nearest = self.table.find_closest(self.local)
        return nearest[-1].kad_key ^ self.local if len(nearest) == self.table.k else math.inf

    def silent_replicas(self, *, or_told_of: bool = False, at_most: int | None = None) -> list[Contact]:
        """Peers that have answered as replicas before, or of which it was told, and failed this node a moment ago.

        Of whom it was told can be a replica unless it has answered as one that keeps no entry sets.
        """
        if not self._failures:
            return []
        now_s = self._clock.monotonic_s()
        lately = self._failures.recent(now_s) if or_told_of else self._failures.recent_replicas(now_s)
        return list(islice((self.contact(peer) for peer in lately if self._replicating.get(peer, True)), at_most))

    def _has_failed_lately(self, peer: PeerId) -> bool:
        return self._failures.is_recent(peer, self._clock.monotonic_s())

    def _probed_lately(self, peer: PeerId) -> bool:
        probe = self._probed.get(peer)
        return probe is not None and self._clock.monotonic_s() < probe.at_s + PROBE_AGAIN_S

    def _is_back(self, peer: PeerId) -> bool:
        """Whether a peer that is heard from is a server that did not answer its last probe, the first in a while."""
        probe = self._probed[peer]
        return probe.has_failed and not probe.is_second and self._replicating.get(peer, False)

    def _left(self, peer: PeerId, reason: str) -> None:
        self.own_arc.observe()
        logger.debug("peer %s left the routing table: %s", short(peer), reason)
        self._feed.publish(PeerLeft(peer=peer, reason=reason))

    def _lost_all(self) -> None:
        self._known_region = None
        self.has_looked_around = False
        self.lost_all_at_s = self._clock.monotonic_s()
        self.loss.set()
        self.loss = trio.Event()

    def _joined(self, contact: Contact) -> None:
        self.own_arc.observe()
        logger.debug("peer %s joined the routing table (%d there now)", short(contact.peer), len(self.table))
        self._feed.publish(PeerJoined(peer=contact.peer, addresses=tuple(map(address_text, contact.addresses))))
        self.arrival.set()
        self.arrival = trio.Event()


def _note(noted: OrderedDict[PeerId, V], peer: PeerId, what: V) -> None:
    noted[peer] = what
    noted.move_to_end(peer)
    if len(noted) > PEERS_NOTED:
        noted.popitem(last=False)
