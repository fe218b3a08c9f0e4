"""The code: which coded symbols an op goes into, and with which checksum.

**The problem.** Two nodes hold almost the same set of op ids. One could send all its ids; XOR of all ids, one number,
says only whether the sets differ. A *coded symbol* is that XOR made useful: over some of the ids it keeps

- the XOR of the ids, 16 bytes;
- the XOR of their checksums, 4 bytes;
- how many there are, with a sign, 2 bytes.

All three are *linear*: the symbol of a set, minus that of another (XOR, XOR, subtraction), is the symbol of their
difference; what both have is gone. If just one id is left in it, the id can be read off, and its checksum shows that it
is one. That id is then taken out of every other symbol it is in, which may leave one id alone in some of those, and so
on: *peeling*.

**Rateless.** How many symbols that takes depends on how many ids differ, which nobody knows. So symbols are numbered
0, 1, 2, …, without end, and thin out: 0 holds every id, the later ones fewer and fewer. Any prefix of this sequence
long enough for the difference decodes it, about 1.35 symbols for each of many differences, up to 1.72 for few; a prefix
too short is simply continued (Yang, Gilad, Alizadeh 2024, "Practical Rateless Set Reconciliation", arXiv 2402.02668).

**The definition.** Nodes that compare must agree on the following to the bit, so it is part of the network's protocol.
All integers are unsigned, arithmetic is modulo 2**64, ``>>`` shifts in zeros.

1. Of an op id its first 16 bytes count, as two little-endian 64-bit halves ``low`` and ``high``. (8 bytes would not do:
   whoever makes 2**32 ids finds two that are equal there.)
2. Its *seed* is ``mix(low + high * 0xDA942042E4DD58B5 + 0x9E3779B97F4A7C15)``, where ``mix(x)``, the last
   steps of SplitMix64, is

   - ``x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9``
   - ``x = (x ^ x >> 27) * 0x94D049BB133111EB``
   - ``x ^ x >> 31``

   A *salted* code takes as seed the 8-byte BLAKE2b hash of those 16 bytes, under the salt's 16 bytes as key, read as
   little-endian. Everybody can foresee the plain code, and choose ids that spoil it; nobody can foresee a salt that two
   nodes draw for one round. But its symbols must be made from the ids, where those of the plain code are at hand.
3. Its checksum is ``seed`` modulo 2**32. It must not be linear under XOR, which the multiplications see to. If it were,
   the XOR of three checksums would be the checksum of the XOR of three ids, and three ids would look like one. And that
   of 16 zeros must not be 0: an empty symbol with a wrong count would look like that id. Hence the constant added.
4. It is in symbol 0. If it is in symbol ``i``, the next it is in is ``i + gap``: advance the state, which begins as the
   seed, to ``state * 0xDA942042E4DD58B5``; let ``f = (state >> 14) + 0.5``; then
   ``gap = ceil((i + 1.5) * (2**25 / sqrt(f) - 1))`` in IEEE 754 double precision, each operation rounded to nearest.
   ``f`` is exact and IEEE demands correctly rounded square roots, so every machine finds the same.
5. A symbol travels as 22 bytes: the XOR of the 16-byte ids; the XOR of the checksums, 32 bits little-endian; the count
   modulo 2**16, 16 bits little-endian.

With ``u = f / 2**50``, uniform in (0, 1), the gap is the paper's ``(i + 1.5) * (1 / sqrt(u) - 1)``, rounded up. That it
exceeds ``x`` has the probability ``((i + 1.5) / (i + 1.5 + x)) ** 2``. This is a product over the symbols passed, so an
op is in each symbol independently of the others, in symbol ``i > 0`` with the *density*
``1 - ((i + 0.5) / (i + 1.5)) ** 2``: 0.64 in symbol 1. The paper's ``1 / (1 + i / 2)``, there 0.67, approximates it.
(In the paper's own program a gap of 0 can occur. With the middle of one of 2**50 intervals for ``u`` it cannot.)

>>> low, high = halves_of(bytes(range(16)))
>>> f"{low:016x} {high:016x}"
'0706050403020100 0f0e0d0c0b0a0908'
>>> f"{PLAIN.seed_of(low, high):016x}"
'654e92aea88d7420'
>>> indices(PLAIN.seed_of(low, high), 1000)
[0, 2, 3, 4, 8, 16, 41, 49, 72, 100, 158, 202, 265]
>>> densities(4).round(3).tolist()
[1.0, 0.64, 0.49, 0.395]

To about a million symbols an op has about 2 ln(i) indices below ``i``: it costs little to keep the first few symbols.

>>> [round(float(densities(count).sum()), 1) for count in (32, 128, 1_000_000)]
[6.1, 8.8, 26.7]
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt

from prime_dht.errors import ValidationError

Ids = npt.NDArray[np.uint8]
"""Op ids in rows: shape (n, 32), or (n, 16) where they are cut to what counts."""

Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.intp]

ID_BYTES = 16
SALT_BYTES = 16
_CHECKSUM_MASK = 0xFFFF_FFFF
_WORD_MASK = 0xFFFF_FFFF_FFFF_FFFF
_MULTIPLIER = 0xDA94_2042_E4DD_58B5
_ADDED = 0x9E37_79B9_7F4A_7C15
_MIX_1, _MIX_2 = 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB
_ROOT = float(1 << 25)

_HALVES = struct.Struct("<QQ")


def halves_of(op_id: bytes) -> tuple[int, int]:
    """The two halves of what counts of an op id, which has 16 bytes or more."""
    low, high = _HALVES.unpack_from(op_id)
    return low, high


def id_of(low: int, high: int) -> bytes:
    """The 16 bytes of which these are the halves."""
    return _HALVES.pack(low, high)


def halves_of_many(ids: Ids) -> tuple[Words, Words]:
    """The halves of many ids, as two arrays of shape (n,)."""
    halves = np.ascontiguousarray(ids[:, :ID_BYTES]).view("<u8")
    return halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)


@dataclass(frozen=True, slots=True)
class Code:
    """The plain code, or, with a salt of 16 bytes, the one that is good for one round.

    Raises:
        ValidationError: the salt has another length.
    """

    salt: bytes = b""

    def __post_init__(self) -> None:
        if len(self.salt) not in (0, SALT_BYTES):
            raise ValidationError(f"a salt has {SALT_BYTES} bytes, not {len(self.salt)}")

    def seed_of(self, low: int, high: int) -> int:
        """The seed of one id."""
        if self.salt:
            return int.from_bytes(blake2b(id_of(low, high), digest_size=8, key=self.salt).digest(), "little")
        x = low + high * _MULTIPLIER + _ADDED & _WORD_MASK
        x = (x ^ x >> 30) * _MIX_1 & _WORD_MASK
        x = (x ^ x >> 27) * _MIX_2 & _WORD_MASK
        return x ^ x >> 31

    def seeds_of(self, low: Words, high: Words) -> Words:
        """The seeds of many ids; arrays of shape (n,)."""
        if self.salt:
            pairs = zip(low.tolist(), high.tolist(), strict=True)
            return np.fromiter((self.seed_of(*pair) for pair in pairs), np.uint64, len(low))
        x: Words = low + high * np.uint64(_MULTIPLIER) + np.uint64(_ADDED)
        x = (x ^ x >> np.uint64(30)) * np.uint64(_MIX_1)
        x = (x ^ x >> np.uint64(27)) * np.uint64(_MIX_2)
        x ^= x >> np.uint64(31)
        return x


PLAIN = Code()


def checksum_of(seed: int) -> int:
    """The checksum of an id with this seed."""
    return seed & _CHECKSUM_MASK


def checksums_of(seeds: Words) -> npt.NDArray[np.uint32]:
    """The checksums of ids with these seeds."""
    return seeds.astype(np.uint32)


def indices(seed: int, stop: int) -> list[int]:
    """The symbols in [0, stop) that an id with this seed is in, ascending."""
    found = []
    index, state = 0, seed
    while index < stop:
        found.append(index)
        state = state * _MULTIPLIER & _WORD_MASK
        index += ceil((index + 1.5) * (_ROOT / sqrt((state >> 14) + 0.5) - 1.0))
    return found


def indices_of_many(seeds: Words, stop: int) -> Iterator[tuple[Indices, Indices]]:
    """The symbols in [0, stop) that each of many ids is in, as pairs of arrays of one shape.

    The first array of a pair names ids by their place in ``seeds``, each at most once; the second has a symbol for
    each.
    """
    which = np.arange(len(seeds))
    index = np.zeros(len(seeds))
    state = seeds
    while len(which):
        yield which, index.astype(np.intp)
        state = state * np.uint64(_MULTIPLIER)
        # Read as signed they are the same numbers, but most processors convert those to floats much faster.
        f = (state >> np.uint64(14)).view(np.int64) + 0.5
        index = index + np.ceil((index + 1.5) * (_ROOT / np.sqrt(f) - 1.0))
        going = np.flatnonzero(index < stop)
        which, index, state = which[going], index[going], state[going]


def densities(count: int) -> npt.NDArray[np.float64]:
    """The probability that an op is in symbol ``i``, for ``i`` in [0, count)."""
    i = np.arange(count)
    density = 1.0 - ((i + 0.5) / (i + 1.5)) ** 2
    density[:1] = 1.0
    return density
