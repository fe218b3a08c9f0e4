"""Where on the circle an op lies, and in which sector.

A *location* is a number below 2**32. An entry's is the top 32 bits of its key's kad key, so keys that are neighbours in
the keyspace are neighbours on the circle, and all keys that share a prefix form an arc. A *sector* is a chunk of the
circle: the locations, or kad keys, that share their first ``sector_bits`` bits.

>>> location_of_key(KadKey(0x818FA957 << 224 | 12345)) == 0x818FA957
True
>>> sector_of(0x818FA957, sector_bits=9), sector_locations(259, sector_bits=9) == range(0x81800000, 0x82000000)
(259, True)

The reference folds an op's *id* into a location instead, which spreads ops evenly but puts those of one key anywhere.
:func:`folded_location` is that function, for data that has no key.
"""

from __future__ import annotations

from prime_dht.errors import ValidationError
from prime_dht.ids import KAD_KEY_BITS, KadKey

LOCATION_BITS = 32


def location_of_key(key: KadKey) -> int:
    """The location of an entry: the top 32 bits of its key's kad key."""
    return key >> (KAD_KEY_BITS - LOCATION_BITS)


def folded_location(op_id: bytes) -> int:
    """The reference's location of an op: byte i of the id XORed into byte i mod 4 of a little-endian number.

    >>> folded_location(b"hello"), folded_location(b"")
    (1819043079, 0)
    """
    location = 0
    for i, byte in enumerate(op_id):
        location ^= byte << 8 * (i % 4)
    return location


def sector_of(location: int, *, sector_bits: int) -> int:
    """The sector a location lies in: its first bits.

    Raises:
        ValidationError: it is no location.
    """
    if not 0 <= location < 1 << LOCATION_BITS:
        raise ValidationError(f"a location is in [0, 2**32), not {location}")
    return location >> (LOCATION_BITS - sector_bits)


def sector_locations(sector: int, *, sector_bits: int) -> range:
    """The locations [start, stop) of a sector."""
    width = LOCATION_BITS - sector_bits
    return range(sector << width, (sector + 1) << width)
