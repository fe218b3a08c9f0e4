"""The routing table: which contacts a node keeps.

Bucket ``i`` holds up to ``k`` contacts that share exactly ``i`` leading bits with the node's own kad key (see
:mod:`prime_dht.kad.keyspace`), so the table knows much of its neighbourhood and little of the far side. After
Maymounkov & Mazières 2002, sections 2.2, 2.4 and 4.1:

- Whoever has a place keeps it for as long as it answers: nodes that have been up for long stay up, and a flood of
  newcomers flushes nobody.
- A newcomer to a full bucket *waits* in the bucket's replacement cache. If the contact seen least recently has not been
  heard from for ``fresh_s``, the table asks its caller to check that one. Only a failed check, or any other failed
  query, frees the place; the most recently seen newcomer that fits takes it. A disconnect is not a failure: most peers
  that are not connected answer when dialled.

The table never pings, dials or looks up; it says what to do and is told what happened. What it is told must be true:

- :meth:`RoutingTable.seen` only when the peer has just proved that it serves the protocol (it answered a query of
  ours): a peer in client mode, one that hangs or one that has only been heard of is never ``seen``;
- :meth:`RoutingTable.remove` when a query or check of it failed, or when identify says that it serves the protocol no
  longer (it turned to client mode).

**Subnets.** At most ``max_per_subnet`` contacts of one subnet in the table and ``max_per_subnet_in_bucket`` in one
bucket (the limits of go-libp2p), so that one operator's many peers do not become a majority. Contacts on loopback and
private addresses have no subnet. In a *small* swarm, of which the table holds fewer than ``k`` contacts, the limits are
waived: there every lookup asks everybody, a refused peer would be cut off, and no place is fought over. So the first
days of a swarm can leave up to ``k`` contacts of one subnet in place, but no more than that.

Differences from the paper: buckets exist for each prefix length at once and are not split (the result is the same
table); a contact is not checked again while it is fresh, so a flood of newcomers causes at most one check per bucket
and ``fresh_s``; and a failed query evicts even when nobody waits for the place, as in go-libp2p.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from prime_dht.errors import ConfigError
from prime_dht.ids import KAD_KEY_BITS, KadKey, PeerId
from prime_dht.kad.contact import Contact
from prime_dht.kad.keyspace import Rng, bucket_range, closest, common_prefix_length, random_key


class Refusal(Enum):
    """Why a contact can have no place."""

    SELF = "it is this node"
    CROWDED_SUBNET = "its subnet has all the places it may have"


@dataclass(frozen=True, slots=True)
class Added:
    """The contact has a place now."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The contact had a place; it is the most recently seen now, and what is known of it is what was given."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The bucket is full of contacts that need no check, or have one under way; the newcomer waits for a place."""


@dataclass(frozen=True, slots=True)
class CheckFirst:
    """As :class:`Waiting`; and query ``contact`` now: then call ``seen`` if it answers, ``remove`` if it does not."""

    contact: Contact


@dataclass(frozen=True, slots=True)
class Rejected:
    """The contact is not kept.

    Attributes:
        left: whether it had a place until now.
        successor: the contact that waited and has a place now, if any.
    """

    reason: Refusal
    left: bool = False
    successor: Contact | None = None


Seen = Added | Refreshed | Waiting | CheckFirst | Rejected


@dataclass(slots=True)
class _Place:
    contact: Contact
    seen_at_s: float
    check_asked_at_s: float = -math.inf


@dataclass(slots=True)
class _Bucket:
    places: dict[PeerId, _Place] = field(default_factory=dict)
    waiting: dict[PeerId, _Place] = field(default_factory=dict)
    """The replacement cache, least recently seen first."""

    def contacts(self) -> Iterator[Contact]:
        return (place.contact for place in self.places.values())


class RoutingTable:
    """Up to ``k`` contacts per bucket around ``local``, this node's own kad key. See the module.

    Holds at most ``bits * k`` contacts and as many that wait. Times are seconds of one monotonic clock.

    Args:
        local: this node's kad key; it is never in its own table.
        k: places in a bucket, and in its replacement cache.
        bits: the width of the keyspace.
        max_per_subnet: contacts of one subnet in the table. A large number switches the limit off.
        max_per_subnet_in_bucket: contacts of one subnet in a bucket. A large number switches the limit off.
        fresh_s: a contact seen so recently needs no check, and a check asked for is not asked for again for so long.
        stale_s: a contact not seen for so long is due for a check even if nobody waits for its place (the default is
            what go-libp2p arrives at for k = 20, alpha = 10 and a refresh every 10 minutes).
        refresh_interval_s: a bucket in whose range no lookup fell for so long is due for a refresh.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        local: KadKey,
        k: int = 20,
        *,
        bits: int = KAD_KEY_BITS,
        max_per_subnet: int = 3,
        max_per_subnet_in_bucket: int = 2,
        fresh_s: float = 60.0,
        stale_s: float = 2580.0,
        refresh_interval_s: float = 3600.0,
    ) -> None:
        if not 0 <= local < 1 << bits:
            raise ConfigError(f"the local kad key does not fit into {bits} bits")
        if min(k, max_per_subnet, max_per_subnet_in_bucket) < 1:
            raise ConfigError("k and the limits per subnet are at least 1")
        self.local = local
        self.k = k
        self.bits = bits
        self._max_per_subnet = max_per_subnet
        self._max_per_subnet_in_bucket = max_per_subnet_in_bucket
        self._fresh_s = fresh_s
        self._stale_s = stale_s
        self._refresh_interval_s = refresh_interval_s
        self._buckets: dict[int, _Bucket] = {}
        self._index_of: dict[PeerId, int] = {}  # of those with a place and those that wait
        self._looked_up_at_s: dict[int, float] = {}

    def __len__(self) -> int:
        return sum(len(bucket.places) for bucket in self._buckets.values())

    def __iter__(self) -> Iterator[Contact]:
        """Every contact, the farthest bucket first."""
        return iter(
            [place.contact for index in sorted(self._buckets) for place in self._buckets[index].places.values()]
        )

    def count(self, where: Callable[[Contact], bool], *, at_most: int) -> int:
        """How many contacts satisfy ``where``, counting to ``at_most``."""
        counted = 0
        for bucket in self._buckets.values():
            for place in bucket.places.values():
                if counted == at_most:
                    return counted
                counted += where(place.contact)
        return counted

    def get(self, peer: PeerId) -> Contact | None:
        """The contact of a peer that has a place."""
        index = self._index_of.get(peer)
        place = None if index is None else self._buckets[index].places.get(peer)
        return None if place is None else place.contact

    def bucket_sizes(self) -> list[int]:
        """How many contacts each bucket holds, farthest first: ``bits`` numbers in [0, k]."""
        sizes = [0] * self.bits
        for index, bucket in self._buckets.items():
            sizes[index] = len(bucket.places)
        return sizes

    def find_closest(
        self, target: KadKey, n: int | None = None, *, where: Callable[[Contact], bool] | None = None
    ) -> list[Contact]:
        """The ``n`` contacts (``k`` by default) that satisfy ``where`` nearest to ``target``, nearest first."""
        wanted = self.k if n is None else n
        return closest(self.near(target, wanted, where=where), target, wanted)

    def near(self, target: KadKey, n: int, *, where: Callable[[Contact], bool] | None = None) -> list[Contact]:
        """In any order, contacts that satisfy ``where``, among them the ``n`` nearest to ``target`` of all that do.

        Buckets lie in groups around a target, each group farther than the one before, so only those needed are looked
        at: first the bucket whose range the target is in, then all nearer to this node (they share with the target
        what this node shares with it, and no more), then the rest, towards the far side.
        """
        found: list[Contact] = []
        for buckets in self._groups(target):
            contacts = [place.contact for bucket in buckets for place in bucket.places.values()]
            found += filter(where, contacts) if where else contacts
            if len(found) >= n:
                break
        return found

    def _groups(self, target: KadKey) -> Iterator[Iterable[_Bucket]]:
        home = common_prefix_length(self.local, target, bits=self.bits)
        if home in self._buckets:
            yield (self._buckets[home],)
        yield [bucket for index, bucket in self._buckets.items() if index > home]
        for index in sorted((index for index in self._buckets if index < home), reverse=True):
            yield (self._buckets[index],)

    def has_room(self, key: KadKey) -> bool:
        """Whether a newcomer at ``key`` would get a place without anybody's losing one."""
        index = common_prefix_length(self.local, key, bits=self.bits)
        bucket = self._buckets.get(index)
        return index < self.bits and (bucket is None or len(bucket.places) < self.k)

    def seen(self, contact: Contact, now_s: float) -> Seen:
        """Note that a peer has just proved that it serves the protocol, and where it was reached."""
        index = common_prefix_length(self.local, contact.kad_key, bits=self.bits)
        if index == self.bits:
            return Rejected(Refusal.SELF)
        bucket = self._buckets.setdefault(index, _Bucket())
        place = bucket.places.get(contact.peer)
        if place is not None and place.contact.subnets == contact.subnets:
            place.contact, place.seen_at_s = contact, now_s
            return Refreshed()
        if place is not None:  # it moved: whether it may stay is decided as for a newcomer
            del bucket.places[contact.peer]
        bucket.waiting.pop(contact.peer, None)
        if not self._fits(contact, bucket):
            self._index_of.pop(contact.peer, None)
            return Rejected(Refusal.CROWDED_SUBNET, left=place is not None, successor=self._promote(bucket))
        self._index_of[contact.peer] = index
        newcomer = _Place(contact, now_s)
        if len(bucket.places) < self.k:
            bucket.places[contact.peer] = newcomer
            return Refreshed() if place is not None else Added()
        return self._wait(bucket, newcomer, now_s)

    def remove(self, peer: PeerId) -> Contact | None:
        """Forget a peer that failed a query or a check, or that serves the protocol no longer.

        Returns:
            The contact that waited and has its place now, if any.
        """
        index = self._index_of.pop(peer, None)
        if index is None:
            return None
        bucket = self._buckets[index]
        if bucket.waiting.pop(peer, None) is not None:
            return None
        del bucket.places[peer]
        return self._promote(bucket)

    def checks_due(self, now_s: float) -> list[Contact]:
        """Contacts not seen for ``stale_s``: query each, then call ``seen`` or ``remove``.

        Calling this asks for the check, so a contact is not named again for ``fresh_s``.
        """
        due = [
            place
            for bucket in self._buckets.values()
            for place in bucket.places.values()
            if now_s - place.seen_at_s >= self._stale_s and now_s - place.check_asked_at_s >= self._fresh_s
        ]
        for place in due:
            place.check_asked_at_s = now_s
        return [place.contact for place in due]

    def looked_up(self, target: KadKey, now_s: float) -> None:
        """Note that a lookup of ``target`` ended: it refreshed the bucket in whose range the target is."""
        self._looked_up_at_s[common_prefix_length(self.local, target, bits=self.bits)] = now_s

    def buckets_due(self, now_s: float) -> list[int]:
        """The buckets to refresh by a lookup of a :meth:`random_target`, farthest first.

        Only as far as the deepest bucket that holds a contact: the ranges beyond are this node's neighbourhood, which
        a lookup of its own kad key covers.
        """
        depth = max((index for index, bucket in self._buckets.items() if bucket.places), default=-1)
        return [
            index
            for index in range(depth + 1)
            if now_s - self._looked_up_at_s.get(index, -math.inf) >= self._refresh_interval_s
        ]

    def random_target(self, index: int, rng: Rng) -> KadKey:
        """A kad key in the range of bucket ``index``."""
        return random_key(bucket_range(self.local, index, bits=self.bits), rng)

    def _fits(self, contact: Contact, bucket: _Bucket) -> bool:
        """Whether the limits per subnet leave room for a newcomer. Counted afresh each time, for newcomers are rare."""
        if not contact.subnets or len(self) < self.k:
            return True
        in_table = Counter(subnet for held in self for subnet in held.subnets)
        in_bucket = Counter(subnet for held in bucket.contacts() for subnet in held.subnets)
        return all(
            in_table[subnet] < self._max_per_subnet and in_bucket[subnet] < self._max_per_subnet_in_bucket
            for subnet in contact.subnets
        )

    def _promote(self, bucket: _Bucket) -> Contact | None:
        """Give a free place to the most recently seen newcomer that fits."""
        if len(bucket.places) == self.k:
            return None
        for newcomer in reversed(bucket.waiting.values()):
            if self._fits(newcomer.contact, bucket):
                del bucket.waiting[newcomer.contact.peer]
                bucket.places[newcomer.contact.peer] = newcomer
                return newcomer.contact
        return None

    def _wait(self, bucket: _Bucket, newcomer: _Place, now_s: float) -> Waiting | CheckFirst:
        bucket.waiting[newcomer.contact.peer] = newcomer
        if len(bucket.waiting) > self.k:
            oldest = next(iter(bucket.waiting))
            del bucket.waiting[oldest], self._index_of[oldest]
        candidate = min(bucket.places.values(), key=lambda place: place.seen_at_s)
        if now_s - max(candidate.seen_at_s, candidate.check_asked_at_s) < self._fresh_s:
            return Waiting()
        candidate.check_asked_at_s = now_s
        return CheckFirst(candidate.contact)
