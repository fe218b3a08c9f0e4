"""What must be true at the end, judged by what writers were told and what lies in the stores.

The *replicas* of a key are the ``r`` nodes closest to it, as somebody knows them who sees all. They *agree* if in each
slot the same entry stands at all of them; who has an older one, or nothing, is *behind*. What others store beside them
is *astray* if it is newer: a node that had just started, or was cut off, took itself for a replica. Sync makes replicas
agree; what is astray they get when whoever has it hands its strays on.
(:mod:`prime_dht.testing.simulation.checks` demands the same of a simulated swarm.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prime_dht.entries.entry import Slot, Version
from prime_dht.ids import KadKey, PeerId, kad_key

Stored = Mapping[Slot, Version]
"""What a node stores: the version that stands in each slot."""


@dataclass(frozen=True, slots=True)
class Behind:
    """A replica has something else in a slot than the newest that any replica has, or nothing.

    Attributes:
        place: 1 for the replica closest to the key.
        has: what it has.
        newest: what it should have.
        held_by: the nodes that have that.
    """

    slot: Slot
    replica: PeerId
    place: int
    has: Version | None
    newest: Version
    held_by: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Astray:
    """The newest in a slot is at none of its replicas; they have ``replicas_have``."""

    slot: Slot
    newest: Version
    held_by: tuple[PeerId, ...]
    replicas_have: Version | None


@dataclass(frozen=True, slots=True)
class Lost:
    """What was acknowledged with full replication stands nowhere, nor does anything newer; ``newest`` is the best."""

    slot: Slot
    acknowledged: Version
    newest: Version | None


def closest(target: KadKey, nodes: Iterable[PeerId], count: int) -> list[PeerId]:
    """The ``count`` nodes closest to a point of the keyspace, the closest first."""
    return sorted(nodes, key=lambda node: kad_key(node) ^ target)[:count]


def behind(stores: Mapping[PeerId, Stored], *, r: int) -> Iterator[Behind]:
    """Each replica that is behind, in each slot; nothing if all replica sets agree."""
    for slot, standing in _standing(stores):
        replicas = closest(kad_key(slot.key), stores, r)
        newest = _newest_of(replicas, standing)
        for place, replica in enumerate(replicas, start=1):
            if newest is not None and standing.get(replica) != newest:
                yield Behind(slot, replica, place, standing.get(replica), newest, _holders(newest, standing))


def astray(stores: Mapping[PeerId, Stored], *, r: int) -> Iterator[Astray]:
    """What is astray."""
    for slot, standing in _standing(stores):
        newest = max(standing.values())
        replicas_have = _newest_of(closest(kad_key(slot.key), stores, r), standing)
        if replicas_have != newest:
            yield Astray(slot, newest, _holders(newest, standing), replicas_have)


def lost(acknowledged: Mapping[Slot, Version], stores: Mapping[PeerId, Stored]) -> Iterator[Lost]:
    """What of that which was acknowledged with full replication is gone.

    Args:
        acknowledged: in each slot the newest of it.
    """
    standing = dict(_standing(stores))
    for slot, version in sorted(acknowledged.items(), key=lambda item: _order(item[0])):
        newest = max(standing[slot].values()) if slot in standing else None
        if newest is None or newest < version:
            yield Lost(slot, version, newest)


def _standing(stores: Mapping[PeerId, Stored]) -> Iterator[tuple[Slot, dict[PeerId, Version]]]:
    """Each slot, and what stands in it at those who have anything there."""
    for slot in sorted({slot for stored in stores.values() for slot in stored}, key=_order):
        yield slot, {node: stored[slot] for node, stored in stores.items() if slot in stored}


def _newest_of(nodes: Iterable[PeerId], standing: Mapping[PeerId, Version]) -> Version | None:
    return max((standing[node] for node in nodes if node in standing), default=None)


def _holders(version: Version, standing: Mapping[PeerId, Version]) -> tuple[PeerId, ...]:
    return tuple(node for node, held in standing.items() if held == version)


def _order(slot: Slot) -> tuple[bytes, bytes, bytes]:
    return slot.key, slot.publisher, slot.subkey
