"""The keyspace: points, the XOR metric, prefixes, and the ranges of a node's k-buckets.

A *kad key* is an integer in [0, 2**bits); ``bits`` is 256 except where a keyspace small enough to see reads better.
The *distance* of two kad keys is their XOR. It is a metric, and unidirectional: for each point and distance there is
exactly one other point (Maymounkov & Mazières 2002, section 2.1).

Two keys share a *prefix*: their common leading bits. The longer it is the closer they are, and whoever shares more bits
with a key is closer to it than whoever shares fewer. Bucket ``i`` of a node is the range of keys that share exactly
``i`` leading bits with the node's own: bucket 0 is the far half of the keyspace, and the ``bits`` buckets with the
node's own key tile all of it. (The paper numbers buckets by distance, from the near end; from the far end an index
means the same in a keyspace of any width.)

>>> local = KadKey(0b1011_0000)
>>> common_prefix_length(local, KadKey(0b1000_0000), bits=8)
2
>>> bucket_range(local, 2, bits=8) == range(0b1000_0000, 0b1010_0000)
True
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from prime_dht.ids import KAD_KEY_BITS, KadKey


class HasKadKey(Protocol):
    """Anything that lies at a point of the keyspace."""

    @property
    def kad_key(self) -> KadKey: ...


class Rng(Protocol):
    """What is used of a :class:`random.Random`, which the caller seeds."""

    def randrange(self, start: int, stop: int, /) -> int: ...


Located = TypeVar("Located", bound=HasKadKey)


def distance(a: KadKey, b: KadKey) -> int:
    """The XOR distance of two points: 0 only between a point and itself."""
    return a ^ b


def common_prefix_length(a: KadKey, b: KadKey, *, bits: int = KAD_KEY_BITS) -> int:
    """How many leading bits two points share, in [0, bits]. It is also the index of the bucket one has the other in.

    >>> common_prefix_length(KadKey(5), KadKey(5), bits=8)
    8
    """
    return bits - (a ^ b).bit_length()


def bucket_range(local: KadKey, index: int, *, bits: int = KAD_KEY_BITS) -> range:
    """The kad keys [start, stop) of bucket ``index`` in [0, bits): which share just so many bits with ``local``."""
    width = bits - 1 - index
    start = ((local >> width) ^ 1) << width
    return range(start, start + (1 << width))


def random_key(keys: range, rng: Rng) -> KadKey:
    """A kad key drawn evenly from a range [start, stop)."""
    return KadKey(rng.randrange(keys.start, keys.stop))


def closest(located: Iterable[Located], target: KadKey, n: int) -> list[Located]:
    """The ``n`` nearest to ``target`` (all, if there are fewer), nearest first."""
    # Not heapq.nsmallest: what comes here is a bucket or a few, and sorting that is twice as fast.
    return sorted(located, key=lambda one: one.kad_key ^ target)[:n]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The kad keys that begin with the given bits: a neighbourhood of the keyspace, and, cut into sectors, an arc.

    ``length`` is in [0, bits]; ``value`` is those leading bits as a number, in [0, 2**length).

    >>> half = Prefix.of(KadKey(0b1011_0000), 1, bits=8)
    >>> half.covers(KadKey(0b1111_1111)), half.covers(KadKey(0b0011_0000))
    (True, False)
    """

    value: int
    length: int
    bits: int = KAD_KEY_BITS

    @classmethod
    def of(cls, key: KadKey, length: int, *, bits: int = KAD_KEY_BITS) -> Prefix:
        """The first ``length`` bits of a kad key."""
        return cls(value=key >> (bits - length), length=length, bits=bits)

    def covers(self, key: KadKey) -> bool:
        """Whether a kad key begins with these bits."""
        return key >> (self.bits - self.length) == self.value

    @property
    def keys(self) -> range:
        """The kad keys [start, stop) it covers."""
        width = self.bits - self.length
        return range(self.value << width, (self.value + 1) << width)
