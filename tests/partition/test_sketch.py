"""Sketches: what they are made of, what is kept of each sector, linearity. Pitfalls are those of the reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import LocalProtocolError, ValidationError
from prime_dht.partition.decode import Decoded, Undecoded, decode
from prime_dht.partition.sketch import MAX_SYMBOLS, SYMBOL_BYTES, SectorSketches, Sketch
from prime_dht.partition.symbols import PLAIN, Code, Ids
from prime_dht.testing.sketch_samples import difference_of, random_ids, rows

SALTED = Code(bytes(range(16)))
SECTORS = 8
OP_IDS = [sha256(b"%d" % number).digest() for number in range(12)]

ops = st.tuples(st.sampled_from(OP_IDS), st.integers(0, SECTORS - 1))


def sketches_of(ids: Ids, sectors: npt.NDArray[np.int64] | Sequence[int], m: int = 32) -> SectorSketches:
    sketches = SectorSketches(SECTORS, m)
    sketches.insert_batch(ids, np.asarray(sectors, np.int64))
    return sketches


def columns(ops: Iterable[tuple[bytes, int]]) -> tuple[Ids, npt.NDArray[np.int64]]:
    listed = list(ops)
    return rows(*(op_id for op_id, _ in listed)), np.array([sector for _, sector in listed], np.int64)


def every_symbol(sketches: SectorSketches) -> list[Sketch]:
    """All symbols of each sector."""
    return [sketches.sketch_of([sector], sketches.m) for sector in range(SECTORS)]


@pytest.mark.parametrize(
    ("code", "symbols"),
    [
        (
            PLAIN,
            [
                "e019072f26a28537a406a15319a80e2d462f310c0300",
                "d4735e3a265e16eee03f59718b9b5d0333fb15ea0100",
                "346a591500fc93d94439f8229233532e75d424e60200",
                "6b86b273ff34fce19d6b804eff5a3f5797eff9640100",
            ],
        ),
        (
            SALTED,
            [
                "e019072f26a28537a406a15319a80e2d8910c6ea0300",
                "6b86b273ff34fce19d6b804eff5a3f579b20c9150100",
                "346a591500fc93d94439f8229233532e6f13c3980200",
                "6b86b273ff34fce19d6b804eff5a3f579b20c9150100",
            ],
        ),
    ],
)
def test_three_ops_have_the_symbols_that_the_definition_says(code: Code, symbols: list[str]) -> None:
    """Golden vectors: the SHA-256 of the texts "0", "1" and "2" as op ids."""
    assert Sketch.of(rows(*OP_IDS[:3]), 4, code).encode() == bytes.fromhex("".join(symbols))


def test_counts_travel_modulo_two_to_the_sixteen() -> None:
    ids = random_ids(Random(1), 65_537)
    counts = Sketch.of(ids, 1).symbols["count"]
    assert counts.tolist() == [1]
    sketches = SectorSketches(1, 1)
    sketches.insert_batch(ids, np.zeros(65_537, np.int64))
    assert sketches.sketch_of([0], 1) == Sketch.of(ids, 1)
    assert difference_of(ids[:2], ids, 1).symbols["count"].tolist() == [1]


def test_a_sketch_travels_as_it_is_whole_or_in_parts() -> None:
    sketch = Sketch.of(random_ids(Random(2), 50), 20, SALTED)
    assert len(sketch.encode()) == 20 * SYMBOL_BYTES == 440
    assert Sketch.decode(sketch.encode(), SALTED) == sketch
    assert Sketch.decode(sketch.prefix(7).encode(), SALTED).append(sketch.encode(7)) == sketch


@pytest.mark.parametrize("length", [0, 1, 21, 23, 22 * 16_385])
def test_what_is_no_sketch_is_not_taken_for_one(length: int) -> None:
    with pytest.raises(ValidationError, match="coded symbols"):
        Sketch.decode(bytes(length))


def test_a_sketch_cannot_grow_beyond_its_bound() -> None:
    sketch = Sketch.decode(bytes(SYMBOL_BYTES * (MAX_SYMBOLS - 1)))
    assert len(sketch.append(bytes(SYMBOL_BYTES))) == MAX_SYMBOLS
    for more in (b"", bytes(21), bytes(44)):
        with pytest.raises(ValidationError, match="coded symbols"):
            sketch.append(more)


def test_only_sketches_of_one_length_and_code_can_be_subtracted() -> None:
    sketch = Sketch.of(random_ids(Random(3), 3), 8)
    for other in (sketch.prefix(7), Sketch(sketch.data, SALTED)):
        with pytest.raises(LocalProtocolError, match="same length and code"):
            sketch.subtract(other)


@pytest.mark.parametrize("count", [0, 33])
def test_only_symbols_that_are_kept_can_be_had(count: int) -> None:
    with pytest.raises(LocalProtocolError, match="32 coded symbols"):
        SectorSketches(SECTORS, 32).sketch_of([0], count)


@given(st.sets(ops), st.sets(st.integers(0, SECTORS - 1)))
@settings(derandomize=True, deadline=None)
def test_the_sketch_of_any_sectors_is_that_of_the_ops_in_them(held: set[tuple[bytes, int]], sectors: set[int]) -> None:
    sketches = sketches_of(*columns(held))
    expected = Sketch.of(rows(*(op_id for op_id, sector in held if sector in sectors)), 20)
    mask = np.isin(np.arange(SECTORS), list(sectors))
    assert sketches.sketch_of(sorted(sectors), 20) == expected
    assert sketches.sketch_of(mask, 20) == expected
    assert sketches.copy().sketch_of(mask, 20) == expected


@given(st.sets(st.sampled_from(OP_IDS)), st.sets(st.sampled_from(OP_IDS)), st.sampled_from([PLAIN, SALTED]))
@settings(derandomize=True, deadline=None)
def test_a_difference_of_sketches_does_not_depend_on_what_both_have(
    ours: set[bytes], theirs: set[bytes], code: Code
) -> None:
    whole = difference_of(rows(*ours), rows(*theirs), 16, code)
    assert whole == difference_of(rows(*(ours - theirs)), rows(*(theirs - ours)), 16, code)


@given(st.lists(st.sets(ops, max_size=90), max_size=6))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_what_is_kept_equals_what_is_rebuilt(batches: list[set[tuple[bytes, int]]]) -> None:
    """In each batch ops that are here go, the others come; singly or together, as if only the last state had been."""
    singly, together = SectorSketches(SECTORS, 32), SectorSketches(SECTORS, 32)
    held: set[tuple[bytes, int]] = set()
    for batch in batches:
        for op in batch & held:
            singly.remove(*op)
        for op in batch - held:
            singly.insert(*op)
        together.remove_batch(*columns(batch & held))
        together.insert_batch(*columns(batch - held))
        held ^= batch
    rebuilt = every_symbol(sketches_of(*columns(held)))
    assert every_symbol(singly) == every_symbol(together) == rebuilt


@pytest.mark.parametrize("n", [1, 39, 40, 70_000])
def test_a_batch_of_any_size_is_that_many_single_ops(n: int) -> None:
    ids, sectors = random_ids(Random(4), n, 32), np.arange(n) * SECTORS // n
    together = sketches_of(ids, sectors)
    for sector in range(SECTORS):
        assert together.sketch_of([sector], 32) == Sketch.of(ids[sectors == sector], 32)
    together.remove_batch(ids[:, :16], sectors)
    assert every_symbol(together) == every_symbol(SectorSketches(SECTORS, 32))


@pytest.mark.parametrize("code", [PLAIN, SALTED])
def test_more_symbols_of_a_set_begin_with_those_that_are_fewer(code: Code) -> None:
    ids = random_ids(Random(5), 300)
    whole = Sketch.of(ids, 500, code)
    assert [whole.prefix(count) for count in (1, 2, 128)] == [Sketch.of(ids, count, code) for count in (1, 2, 128)]


def test_pitfall_2_later_symbols_must_describe_the_same_set() -> None:
    """Ops come while a round lasts. Symbols taken later from what is live decode nothing, from a copy all."""
    ids, news = random_ids(Random(6), 300), random_ids(Random(7), 3)
    theirs = sketches_of(ids[:260], [0] * 260, m=128)
    ours = Sketch.of(ids[20:], 128)
    copied = theirs.copy()
    opening = copied.sketch_of([0], 32)
    theirs.insert_batch(news, np.zeros(3, np.int64))

    mixed = opening.append(theirs.sketch_of([0], 128).encode(32))
    assert isinstance(decode(ours.subtract(mixed)), Undecoded)
    same = opening.append(copied.sketch_of([0], 128).encode(32))
    assert decode(ours.subtract(same)) == Decoded(
        ours=tuple(sorted(row.tobytes() for row in ids[260:])), theirs=tuple(sorted(row.tobytes() for row in ids[:20]))
    )


def test_pitfall_4_what_is_inserted_twice_is_lost_to_the_xor_but_counted() -> None:
    """Why the partition is told only of ops that really come or go."""
    sketches = SectorSketches(SECTORS, 32)
    sketches.insert(OP_IDS[0], 3)
    sketches.insert(OP_IDS[0], 3)
    assert sketches.sketch_of([3], 1).encode() == bytes(20) + b"\x02\x00"
    sketches.remove(OP_IDS[0], 3)
    assert sketches.sketch_of([3], 32) == Sketch.of(rows(OP_IDS[0]), 32)
    sketches.remove(OP_IDS[0], 3)
    assert sketches.sketch_of([3], 32) == Sketch.of(rows(), 32)


def test_checksums_tell_which_sectors_differ_in_four_bytes_each() -> None:
    ids = random_ids(Random(8), 80)
    ours, theirs = sketches_of(ids, [n % SECTORS for n in range(80)]), SectorSketches(SECTORS, 32)
    theirs.insert_batch(ids[:78], np.arange(78) % SECTORS)
    checksums = ours.checksums()
    assert checksums.nbytes == 4 * SECTORS
    assert np.flatnonzero(checksums != theirs.copy().checksums()).tolist() == [78 % SECTORS, 79 % SECTORS]


def test_a_copy_and_what_it_is_of_change_on_their_own() -> None:
    sketches = sketches_of(rows(*OP_IDS), [0] * len(OP_IDS))
    copied = sketches.copy()
    before = copied.sketch_of([0], 32)
    sketches.remove(OP_IDS[0], 0)
    assert copied.sketch_of([0], 32) == before != sketches.sketch_of([0], 32)
    copied.remove(OP_IDS[0], 0)
    assert every_symbol(copied) == every_symbol(sketches)


def test_the_default_takes_three_kibibytes_a_sector() -> None:
    assert SectorSketches(512).nbytes == 512 * 3072
