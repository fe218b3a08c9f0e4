"""The code, which is the same on every machine. Pitfalls are those of the reference."""

from __future__ import annotations

from collections import Counter
from decimal import ROUND_CEILING, Decimal, localcontext
from functools import reduce
from hashlib import sha256
from operator import xor
from random import Random

import numpy as np
import pytest

from prime_dht.errors import ValidationError
from prime_dht.partition.symbols import (
    PLAIN,
    Code,
    Words,
    checksum_of,
    checksums_of,
    densities,
    halves_of,
    halves_of_many,
    id_of,
    indices,
    indices_of_many,
)
from prime_dht.testing.sketch_samples import random_ids, rows

SALTED = Code(bytes(range(16)))
MULTIPLIER = 0xDA942042E4DD58B5


def seed_of(op_id: bytes, code: Code = PLAIN) -> int:
    return code.seed_of(*halves_of(op_id))


@pytest.mark.parametrize(
    ("op_id", "code", "seed", "symbols"),
    [
        (bytes(range(16)), PLAIN, 0x654E92AEA88D7420, [0, 2, 3, 4, 8, 16, 41, 49, 72, 100, 158, 202, 265]),
        (bytes(16), PLAIN, 0xE220A8397B1DCDAF, [0, 1, 4, 8, 18, 22, 39, 95, 121, 140, 141, 201, 222]),
        (
            sha256(b"prime").digest(),
            PLAIN,
            0x22B7F7B7939C0387,
            [0, 1, 2, 3, 7, 8, 11, 35, 59, 351, 362],
        ),
        (
            b"\xff" * 16,
            PLAIN,
            0x887F448F74232E38,
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 21, 34, 40, 103, 107, 148, 184, 254],
        ),
        (bytes(range(16)), SALTED, 0x443FA492A1317D8A, [0, 1, 3, 4, 11, 27, 29, 61, 74, 92, 128, 159, 176]),
        (
            sha256(b"prime").digest(),
            SALTED,
            0x9E542CEA945A9D61,
            [0, 1, 2, 7, 14, 15, 16, 48, 59, 77, 132, 153, 236, 340],
        ),
    ],
)
def test_ids_have_the_seeds_and_symbols_that_the_definition_says(
    op_id: bytes, code: Code, seed: int, symbols: list[int]
) -> None:
    """Golden vectors: whoever implements the code elsewhere must find the same."""
    assert seed_of(op_id, code) == seed
    assert indices(seed, 700) == symbols
    assert checksum_of(seed) == seed % 2**32


def test_the_walk_is_that_of_exact_arithmetic() -> None:
    """The formula, worked out to 60 digits: rounding to 53 bits changes no symbol of 2,000 ids."""
    rng = Random(1)
    half, three_halves, root = Decimal("0.5"), Decimal("1.5"), Decimal(2**25)
    with localcontext(prec=60):
        for _ in range(2000):
            seed = rng.getrandbits(64)
            state, index, walk = seed, 0, []
            while index < 100_000:
                walk.append(index)
                state = state * MULTIPLIER % 2**64
                gap = (index + three_halves) * (root / (state // 2**14 + half).sqrt() - 1)
                index += int(gap.to_integral_value(ROUND_CEILING))
            assert indices(seed, 100_000) == walk


@pytest.mark.parametrize("stop", [1, 128, 5000])
def test_many_ids_walk_as_each_does_alone(stop: int) -> None:
    low, high = halves_of_many(random_ids(Random(2), 500, 32))
    for code in (PLAIN, SALTED):
        seeds = code.seeds_of(low, high)
        assert seeds.tolist() == [code.seed_of(*halves) for halves in zip(low.tolist(), high.tolist(), strict=True)]
        assert checksums_of(seeds).tolist() == [checksum_of(seed) for seed in seeds.tolist()]
        together = [(which, index) for pair in indices_of_many(seeds, stop) for which, index in zip(*pair, strict=True)]
        alone = [(n, index) for n, seed in enumerate(seeds.tolist()) for index in indices(seed, stop)]
        assert sorted(together) == alone


def test_an_id_is_in_a_symbol_once_whatever_its_seed() -> None:
    """At the ends of the generator's range too: there the shortest gap is 1 and the longest is finite."""
    smallest_gap = (2**64 - 1) * pow(MULTIPLIER, -1, 2**64) % 2**64
    assert indices(smallest_gap, 2) == [0, 1]
    assert indices(0, 2**26) == [0]
    assert indices(0, 2**27) == [0, 71179698]
    seeds: Words = np.array([smallest_gap, 0], np.uint64)
    assert [pair[1].tolist() for pair in indices_of_many(seeds, 2)] == [[0, 0], [1]]


def test_symbols_are_as_dense_as_said_and_independent_of_each_other() -> None:
    n, width = 30_000, 16
    seeds = PLAIN.seeds_of(*halves_of_many(random_ids(Random(3), n)))
    member = np.zeros((n, width))
    for which, index in indices_of_many(seeds, width):
        member[which, index] = 1
    density = densities(width)
    deviations = np.sqrt(density * (1 - density) / n)[1:]
    assert np.all(np.abs(member.mean(axis=0) - density)[1:] < 4 * deviations)
    assert member[:, 0].all()
    correlation = np.corrcoef(member[:, 1:].T) - np.eye(width - 1)
    assert np.abs(correlation).max() < 5 / np.sqrt(n)


def test_the_density_of_symbol_1_is_064_and_not_the_textbooks_two_thirds() -> None:
    assert densities(2).tolist() == [1.0, 0.64]


def test_pitfall_3_checksums_of_ids_do_not_add_up_to_the_checksum_of_their_sum() -> None:
    ids = [row.tobytes() for row in random_ids(Random(4), 3000)]
    for code in (PLAIN, SALTED):
        for three in zip(ids[::3], ids[1::3], ids[2::3], strict=True):
            together = bytes(a ^ b ^ c for a, b, c in zip(*three, strict=True))
            assert reduce(xor, (checksum_of(seed_of(op_id, code)) for op_id in three)) != checksum_of(
                seed_of(together, code)
            )


def test_pitfall_5_ids_count_to_their_sixteenth_byte_and_no_further() -> None:
    """Ids that agree in 8 bytes are found by anybody who makes 2**32 of them; in 16, by nobody."""
    op_id = sha256(b"op").digest()
    for place in range(16):
        other = op_id[:place] + bytes([op_id[place] ^ 1]) + op_id[place + 1 :]
        assert seed_of(other) != seed_of(op_id)
        assert seed_of(other, SALTED) != seed_of(op_id, SALTED)
    assert seed_of(op_id[:16] + bytes(16)) == seed_of(op_id)
    assert id_of(*halves_of(op_id)) == op_id[:16]


def test_another_salt_gives_other_symbols() -> None:
    ids = [row.tobytes() for row in random_ids(Random(5), 200)]
    walks = Counter(tuple(indices(seed_of(op_id, Code(bytes([salt]) * 16)), 128)) for op_id in ids for salt in range(5))
    assert len(walks) > 900


@pytest.mark.parametrize("length", [1, 15, 17, 32])
def test_a_salt_has_sixteen_bytes(length: int) -> None:
    with pytest.raises(ValidationError, match="16 bytes"):
        Code(bytes(length))


def test_halves_are_little_endian() -> None:
    low, high = halves_of_many(rows(bytes(range(32))))
    assert (low.tolist(), high.tolist()) == ([0x0706050403020100], [0x0F0E0D0C0B0A0908])
