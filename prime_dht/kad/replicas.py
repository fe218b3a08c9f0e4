"""Replicas: who stores a key, how many of them must acknowledge, which part of the keyspace a node must store.

The replicas of a key are the ``r`` servers closest to it. For ``/prime/`` keys only servers that sync count. A *quorum*
is more than half of them, so any two quorums of one key share a replica: what one acknowledged, the other returns.

**Target arc.** A node must store every key of which it is a replica, without knowing all servers. Let ``L`` be the
number of consecutive buckets, farthest first, that each hold at least ``r`` live servers that sync; the target arc is
all keys that share the first ``L`` bits of the node's kad key. It is large enough: a key outside it shares with the
node just ``j < L`` bits. The contacts in bucket ``j`` share just ``j`` bits with the node too, so they have the key's
next bit and share at least ``j + 1`` bits with the key. So at least ``r`` servers are closer to it, and this node is
not a replica.

**Known region.** The result of one lookup answers for many keys. Say it found the ``k`` closest to a target, the
farthest of which shares ``c`` bits with it. A server that was not found is farther than that one, so it shares at most
``c`` bits with the target: every server whose kad key shares ``c + 1`` bits with the target was found. That prefix is
the *known region*. For a key in it, servers in the region (at least ``c + 1`` bits in common) are closer than any
outside (at most ``c``). So where the region holds at least ``r`` servers, the ``r`` closest to any of its keys are
among those found.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import assert_never

from prime_dht.ids import KAD_KEY_BITS, KadKey
from prime_dht.kad.contact import Contact
from prime_dht.kad.keyspace import Prefix, closest, common_prefix_length
from prime_dht.kad.lookup import LookupResult, Outcome


def syncs(contact: Contact) -> bool:
    """Whether a contact can be a replica of ``/prime/`` keys."""
    return contact.syncs


def choose_replicas(
    target: KadKey,
    contacts: Iterable[Contact],
    replication: int,
    *,
    own: Contact | None = None,
) -> list[Contact]:
    """The ``replication`` servers that sync closest to ``target``, nearest first; fewer if fewer are known.

    Args:
        own: this node as a contact, if it is in server mode.
    """
    servers = contacts if own is None else (own, *contacts)
    return closest(filter(syncs, servers), target, replication)


def digest(replicas: Iterable[Contact]) -> bytes:
    """Which peers they are, in 8 bytes, whatever their order: nodes that compare it need not name them.

    >>> from prime_dht.ids import PeerId, kad_key
    >>> a, b = (Contact(peer=peer, kad_key=kad_key(peer)) for peer in (PeerId(b"a"), PeerId(b"b")))
    >>> digest([a, b]) == digest([b, a]), digest([a, b]) == digest([a])
    (True, False)
    """
    return hashlib.sha256(b"".join(sorted([replica.peer for replica in replicas]))).digest()[:8]


def quorum(replication: int, servers: int) -> int:
    """How many replicas must acknowledge a put, or answer a read: ⌊r/2⌋ + 1, but no more than there are servers.

    Args:
        servers: how many eligible servers are known, with this node if it is one. With none the quorum is 0, and there
            is nothing to put to or read from.

    >>> quorum(3, servers=20), quorum(3, servers=1), quorum(4, servers=20)
    (2, 1, 3)
    """
    return min(replication // 2 + 1, servers)


def target_arc(local: KadKey, contacts: Iterable[Contact], replication: int, *, bits: int = KAD_KEY_BITS) -> Prefix:
    """The arc this node has to store, given the contacts it knows to be alive. Above is why it is large enough."""
    servers = [0] * (bits + 1)  # the last counts this node itself, should it be among the contacts
    for contact in filter(syncs, contacts):
        servers[common_prefix_length(local, contact.kad_key, bits=bits)] += 1
    length = next(index for index in range(bits + 1) if index == bits or servers[index] < replication)
    return Prefix.of(local, length, bits=bits)


class TargetArc:
    """The target arc over time: it grows at once, and shrinks only after a whole refresh interval.

    Growing late would leave keys without a replica. Shrinking early would drop what this node has to store again when
    a burst of newcomers does not stay.

    Args:
        arc: the target arc now.
        refresh_interval_s: it shrinks when only smaller ones were observed for so long, to the largest of them.
    """

    def __init__(self, arc: Prefix, *, refresh_interval_s: float) -> None:
        self.arc = arc
        self._refresh_interval_s = refresh_interval_s
        self._smaller: Prefix | None = None
        self._smaller_since_s = 0.0

    def update(self, observed: Prefix, now_s: float) -> Prefix:
        """Take in what :func:`target_arc` says now; returns the arc to store."""
        if observed.length <= self.arc.length:
            self.arc, self._smaller = observed, None
        elif self._smaller is None:
            self._smaller, self._smaller_since_s = observed, now_s
        else:
            self._smaller = min(self._smaller, observed, key=lambda arc: arc.length)
            if now_s - self._smaller_since_s >= self._refresh_interval_s:
                self.arc, self._smaller = self._smaller, None
        return self.arc


def known_region(result: LookupResult, *, bits: int = KAD_KEY_BITS) -> Prefix | None:
    """The neighbourhood of a lookup's target of which the result holds every eligible server that is alive.

    It is all of the keyspace if the lookup heard of fewer than it wanted, and ``None`` if it was cut short.
    """
    match result.outcome:
        case Outcome.CONVERGED:
            common = common_prefix_length(result.target, result.closest[-1].kad_key, bits=bits)
            return Prefix.of(result.target, min(common + 1, bits), bits=bits)
        case Outcome.EXHAUSTED:
            return Prefix.of(result.target, 0, bits=bits)
        case Outcome.ENOUGH | Outcome.QUERY_LIMIT | Outcome.DEADLINE:
            return None
        case _:
            assert_never(result.outcome)


def answered_keys(
    keys: Sequence[KadKey], result: LookupResult, replication: int, *, bits: int = KAD_KEY_BITS
) -> Sequence[KadKey]:
    """Of kad keys in ascending order, those whose ``replication`` closest servers are all in a lookup's result.

    A batch of keys needs a lookup only of the first that no result has answered yet, until none is left: the target is
    always answered, as well as the lookup could. So are the keys in the known region, if it holds enough servers or is
    all of the keyspace.
    """
    region = known_region(result, bits=bits)
    answered = range(result.target, result.target + 1)
    if region is not None:
        found = sum(region.covers(server.kad_key) for server in result.closest)
        if found >= replication or region.length == 0:  # where there are no others anywhere, few are enough
            answered = region.keys
    return keys[bisect_left(keys, answered.start) : bisect_left(keys, answered.stop)]
