"""Combined hashes: what a node keeps of the ops in a cell.

A *combined hash* is the XOR of the 32-byte ids of some ops, together with how many they are. The order of the ops does
not matter, the combined hash of two sets of ops that share none is the sum of theirs, and that of no ops is
:data:`NOTHING`. A *top hash* is such a sum over cells.

>>> one, other = Combined(bytes([0b0011]) + bytes(31), 1), Combined(bytes([0b0101]) + bytes(31), 1)
>>> both = one + other
>>> bin(both.hash[0]), both.count, both + NOTHING == both
('0b110', 2, True)

Without the count, XOR would be its own inverse: whoever can choose the ids of some 258 ops finds among them, by
Gaussian elimination, a set whose XOR is 0, and a node with these ops would look like one without. The count tells them
apart. It cannot tell two sets of equal size and equal XOR apart, which the same effort finds; against these, rounds
compare a sector by a salted hash now and then. The harm is limited to ops of that one publisher either way.
"""

from __future__ import annotations

from dataclasses import dataclass

from prime_dht.errors import ValidationError

HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class Combined:
    """The XOR of the ids of some ops, and their number.

    Raises:
        ValidationError: the hash does not have 32 bytes, or the count is negative.
    """

    hash: bytes
    count: int

    def __post_init__(self) -> None:
        if len(self.hash) != HASH_BYTES or self.count < 0:
            raise ValidationError(f"a combined hash has {HASH_BYTES} bytes and a count from 0 on")

    def __add__(self, other: Combined) -> Combined:
        xored = int.from_bytes(self.hash, "big") ^ int.from_bytes(other.hash, "big")
        return Combined(xored.to_bytes(HASH_BYTES, "big"), self.count + other.count)


NOTHING = Combined(bytes(HASH_BYTES), 0)
"""The combined hash of no ops."""
