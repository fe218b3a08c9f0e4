"""Decoding: every difference that the symbols tell, and nothing else. Pitfalls are those of the reference."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.partition.decode import Decoded, Disproved, Undecoded, decode, prove
from prime_dht.partition.planes import Planes
from prime_dht.partition.sketch import SYMBOL_BYTES, Sketch
from prime_dht.partition.symbols import PLAIN, Code, Ids, Words, checksum_of, halves_of, indices
from prime_dht.testing.sketch_samples import difference_of, random_ids, rows

SALTED = Code(bytes(range(16)))
ONE_BY_ONE, TOGETHER = 1 << 30, 0
"""Sizes from which waves are peeled together."""


def ids_in(ids: Ids) -> tuple[bytes, ...]:
    return tuple(sorted(row.tobytes()[:16] for row in ids))


def walk_of(op_id: bytes, stop: int) -> list[int]:
    return indices(PLAIN.seed_of(*halves_of(op_id)), stop)


def add(planes: Planes, op_id: bytes, places: list[int], sign: int = 1) -> None:
    """Put an id into symbols, whether it belongs there or not."""
    low, high = halves_of(op_id)
    planes.add(low, high, checksum_of(PLAIN.seed_of(low, high)), places, sign)


def sketch_in(planes: Planes) -> Sketch:
    return Sketch(planes.packed().tobytes())


@pytest.mark.parametrize(
    ("d", "count"), [(0, 1), (1, 1), (2, 16), (5, 40), (10, 64), (20, 64), (100, 200), (1000, 1500), (3000, 4300)]
)
@pytest.mark.parametrize("code", [PLAIN, SALTED])
def test_decoding_finds_exactly_the_difference(d: int, count: int, code: Code) -> None:
    """Of two sets, the first with a third of the ids that differ, the second with the others."""
    rng = Random(d + 9)
    common, ours, theirs = random_ids(rng, 200), random_ids(rng, d // 3), random_ids(rng, d - d // 3)
    difference = difference_of(np.concatenate([common, ours]), np.concatenate([theirs, common]), count, code)
    assert decode(difference) == Decoded(ours=ids_in(ours), theirs=ids_in(theirs))


@pytest.mark.parametrize(
    ("d", "count", "trials", "decoded"),
    [
        (1, 1, 1000, 1000),
        (5, 8, 1000, 583),
        (5, 15, 1000, 962),
        (5, 21, 1000, 995),
        (5, 32, 1000, 995),
        (10, 32, 1000, 992),
        (10, 64, 300, 300),
        (20, 32, 300, 183),
        (20, 43, 300, 289),
        (100, 144, 200, 102),
        (100, 176, 200, 199),
        (1000, 1374, 40, 18),
        (1000, 1441, 40, 40),
    ],
)
def test_so_many_symbols_decode_so_many_differences_so_often(d: int, count: int, trials: int, decoded: int) -> None:
    rng = Random(1000 * d + count)
    differences = (random_ids(rng, d) for _ in range(trials))
    results = (decode(difference_of(ids[: d // 2], ids[d // 2 :], count)) for ids in differences)
    assert sum(isinstance(result, Decoded) for result in results) == decoded


def test_too_few_symbols_give_no_ids_but_an_estimate() -> None:
    ids = random_ids(Random(1), 100)
    assert decode(difference_of(ids[:30], ids[30:], 32)) == Undecoded(estimate=132)
    assert decode(difference_of(ids, ids[:0], 1)) == Undecoded(estimate=100)


def test_more_symbols_decode_what_fewer_did_not() -> None:
    ids = random_ids(Random(2), 60)
    ours, theirs = ids[:30], ids[30:]
    assert isinstance(decode(Sketch.of(ours, 32).subtract(Sketch.of(theirs, 32))), Undecoded)
    assert decode(Sketch.of(ours, 128).subtract(Sketch.of(theirs, 128))) == Decoded(
        ours=ids_in(ours), theirs=ids_in(theirs)
    )


class TestPeelingOneByOneAndTogether:
    """Two ways to the same result, whatever the symbols are."""

    @pytest.mark.parametrize(
        ("d", "count"), [(5, 6), (5, 20), (20, 30), (100, 140), (100, 150), (400, 560), (1000, 1400)]
    )
    @pytest.mark.parametrize("code", [PLAIN, SALTED])
    def test_agree_on_honest_differences(self, d: int, count: int, code: Code) -> None:
        ids = random_ids(Random(d + count), d)
        difference = difference_of(ids[: d // 3], ids[d // 3 :], count, code)
        assert decode(difference, together_from=ONE_BY_ONE) == decode(difference, together_from=TOGETHER)
        assert decode(difference, together_from=ONE_BY_ONE) == decode(difference, together_from=8)

    @given(st.binary(min_size=SYMBOL_BYTES, max_size=40 * SYMBOL_BYTES))
    @settings(derandomize=True, deadline=None)
    def test_agree_on_any_bytes(self, data: bytes) -> None:
        difference = Sketch.decode(data[: len(data) // SYMBOL_BYTES * SYMBOL_BYTES])
        assert decode(difference, together_from=ONE_BY_ONE) == decode(difference, together_from=TOGETHER)

    @given(
        st.lists(
            st.tuples(st.integers(0, 5), st.sampled_from([1, -1]), st.sets(st.integers(0, 7)) | st.none()), max_size=12
        )
    )
    @settings(derandomize=True, deadline=None, max_examples=200)
    def test_agree_on_ids_put_where_they_do_not_belong(self, put: list[tuple[int, int, set[int] | None]]) -> None:
        """Honest ids, some of them again, with another sign, or in any symbols at all."""
        planes = Planes.zeros(8)
        for number, sign, places in put:
            op_id = bytes([number]) * 16
            add(planes, op_id, walk_of(op_id, 8) if places is None else sorted(places), sign)
        difference = sketch_in(planes)
        result = decode(difference, together_from=ONE_BY_ONE)
        assert result == decode(difference, together_from=TOGETHER)
        if isinstance(result, Decoded):
            assert difference == difference_of(rows(*result.ours), rows(*result.theirs), 8)


@given(st.binary(min_size=SYMBOL_BYTES, max_size=40 * SYMBOL_BYTES))
@settings(derandomize=True, deadline=None)
def test_random_symbols_are_no_difference(data: bytes) -> None:
    difference = Sketch.decode(data[: len(data) // SYMBOL_BYTES * SYMBOL_BYTES])
    result = decode(difference)
    if isinstance(result, Decoded):
        assert difference == difference_of(rows(*result.ours), rows(*result.theirs), len(difference))


def test_lies_about_counts_decode_nothing() -> None:
    ids = random_ids(Random(3), 10)
    honest = difference_of(ids[:5], ids[5:], 40)
    assert isinstance(decode(honest), Decoded)
    for place in range(40):
        for lie in (1, -1, 2, 1000, -32768):
            symbols = honest.symbols.copy()
            symbols["count"][place : place + 1] += np.int16(lie)
            assert isinstance(decode(Sketch(symbols.tobytes())), Undecoded)


def test_any_bit_of_a_sketch_matters() -> None:
    ids = random_ids(Random(4), 4)
    data = difference_of(ids[:2], ids[2:], 12).encode()
    assert isinstance(decode(Sketch(data)), Decoded)
    for bit in range(8 * len(data)):
        flipped = int.from_bytes(data, "little") ^ 1 << bit
        assert isinstance(decode(Sketch(flipped.to_bytes(len(data), "little"))), Undecoded)


@pytest.mark.parametrize("together_from", [ONE_BY_ONE, TOGETHER])
class TestPitfall6:
    """Decoding ends, whatever is planted."""

    def test_an_id_planted_twice_into_a_symbol_is_not_read_for_ever(self, together_from: int) -> None:
        """Taken out of symbol 0 it appears in symbol 1, taken out there it is back in symbol 0, and so on."""
        op_id = next(op_id for op_id in map(bytes, random_ids(Random(5), 9)) if walk_of(op_id, 2) == [0, 1])
        planes = Planes.zeros(2)
        add(planes, op_id, [0, 1, 1])
        assert isinstance(decode(sketch_in(planes), together_from=together_from), Undecoded)

    def test_an_id_planted_where_it_does_not_belong_is_not_taken(self, together_from: int) -> None:
        op_id = next(op_id for op_id in map(bytes, random_ids(Random(6), 9)) if 1 not in walk_of(op_id, 8))
        planes = Planes.zeros(8)
        add(planes, op_id, [1])
        assert isinstance(decode(sketch_in(planes), together_from=together_from), Undecoded)

    def test_an_id_with_both_signs_is_not_taken(self, together_from: int) -> None:
        op_id = next(op_id for op_id in map(bytes, random_ids(Random(7), 9)) if walk_of(op_id, 2) == [0, 1])
        planes = Planes.zeros(2)
        add(planes, op_id, [0])
        add(planes, op_id, [1], -1)
        assert isinstance(decode(sketch_in(planes), together_from=together_from), Undecoded)

    def test_there_are_never_more_ids_than_symbols(self, together_from: int) -> None:
        """Checksums are linear, so ids can be chosen whose checksums cancel. Here all are 0, and five ids fit in four
        symbols, in each of which, when its turn has come, some of them hide behind another."""
        walks = {5: [0, 2], 6: [0, 2, 3], 4: [0], 3: [0, 1, 2], 1: [0, 2]}
        planes = Planes.zeros(4)
        for place, (low, count) in enumerate([(5, 1), (3, -1), (1, 0), (6, 1)]):
            planes.low[place], planes.count[place] = low, count
        difference = Sketch(planes.packed().tobytes(), _NoChecksums.with_walks(walks, stop=4))
        assert isinstance(decode(difference, together_from=together_from), Undecoded)
        room_for_a_fifth = Sketch(difference.data + bytes(SYMBOL_BYTES), difference.code)
        decoded = decode(room_for_a_fifth, together_from=together_from)
        assert isinstance(decoded, Decoded)
        assert len(decoded.ours + decoded.theirs) == 5


class _NoChecksums(Code):
    """A code whose checksums are all 0, and in which chosen ids walk as one likes."""

    seeds: dict[int, int]
    __slots__ = ("seeds",)

    @classmethod
    def with_walks(cls, walks: dict[int, list[int]], *, stop: int) -> _NoChecksums:
        """Ids by their low halves, and the symbols below ``stop`` + 1 that each is in."""
        rng, code = Random(8), cls()
        found = {}
        for low, walk in walks.items():
            while indices(seed := rng.getrandbits(32) << 32, stop + 1) != walk:
                pass
            found[low] = seed
        object.__setattr__(code, "seeds", found)
        return code

    def seed_of(self, low: int, high: int) -> int:
        return self.seeds.get(low, 1)

    def seeds_of(self, low: Words, high: Words) -> Words:
        return np.array([self.seed_of(half, 0) for half in low.tolist()], np.uint64)


class TestPitfall7:
    """What is decoded is believed only if ours are here and theirs are not."""

    def test_a_true_difference_is_proved(self) -> None:
        ids = random_ids(Random(9), 10)
        here = set(ids_in(ids[:8]))
        decoded = decode(difference_of(ids[:8], ids[5:], 32))
        assert isinstance(decoded, Decoded)
        assert prove(decoded, here.__contains__) is decoded

    def test_ours_that_are_not_here_disprove_it(self) -> None:
        """A peer leaves ids out of its symbols that nobody ever had: they seem to be ours."""
        ids = random_ids(Random(10), 10)
        ours = Sketch.of(ids, 32)
        planes = Planes.unpacked(ours.symbols)
        for op_id in (b"nobody ever had ", b"this or that op "):
            add(planes, op_id, walk_of(op_id, 32), -1)
        decoded = decode(ours.subtract(sketch_in(planes)))
        assert isinstance(decoded, Decoded)
        assert prove(decoded, set(ids_in(ids)).__contains__) == Disproved(
            absent=(b"nobody ever had ", b"this or that op "), present=()
        )

    def test_theirs_that_are_here_disprove_it(self) -> None:
        """A peer counts an op that we have too twice."""
        ids = random_ids(Random(11), 10)
        ours = Sketch.of(ids, 32)
        decoded = decode(ours.subtract(Sketch.of(np.concatenate([ids, ids[:1]]), 32)))
        assert isinstance(decoded, Decoded)
        assert prove(decoded, set(ids_in(ids)).__contains__) == Disproved(absent=(), present=ids_in(ids[:1]))


def test_pitfall_1_chosen_ops_can_cancel_and_a_salt_shows_it() -> None:
    """XOR is linear, and whoever publishes can choose among many ops. Of 778 some can be divided in two halves that no
    combined hash tells apart, with or without count, nor the first four coded symbols. A salted symbol does."""
    ours, theirs = forged_halves(random_ids(Random(12), 778, 32), count=4)
    assert len(ours) == len(theirs) > 100
    assert not np.isin(ours[:, :8].view(np.uint64), theirs[:, :8].view(np.uint64)).any()
    assert bytes(np.bitwise_xor.reduce(ours)) == bytes(np.bitwise_xor.reduce(theirs))
    assert Sketch.of(ours, 4) == Sketch.of(theirs, 4)

    assert Sketch.of(ours, 1, SALTED) != Sketch.of(theirs, 1, SALTED)
    assert isinstance(decode(difference_of(ours, theirs, 1, SALTED)), Undecoded)


def test_pitfall_1_without_checksums_258_ops_are_enough() -> None:
    """As many as a combined hash has bits, one for the count, and one more. Symbol 0 of a sketch has checksums."""
    ours, theirs = forged_halves(random_ids(Random(13), 258, 32), count=0)
    assert len(ours) == len(theirs) > 0
    assert bytes(np.bitwise_xor.reduce(ours)) == bytes(np.bitwise_xor.reduce(theirs))
    (symbol,) = difference_of(ours, theirs, 1).symbols
    assert (symbol["low"], symbol["high"], symbol["count"]) == (0, 0, 0)
    assert symbol["checksum"] != 0


def forged_halves(ids: Ids, *, count: int) -> tuple[Ids, Ids]:
    """Ids in two halves of one size and XOR, and, of so many symbols, of one sketch: by elimination.

    Each id is a vector of bits: what it adds to the combined hash and to the symbols, and which of the symbols it is
    in, so that of those in the same ones there is an even number, and half of them can go to either side. Some ids
    whose vectors sum to zero exist as soon as there are more of them than bits.
    """
    reached: dict[int, tuple[int, int]] = {}
    for place, row in enumerate(ids):
        op_id = row.tobytes()
        vector, chosen = _vector(op_id, count), 1 << place
        while vector and vector.bit_length() in reached:
            other_vector, other_chosen = reached[vector.bit_length()]
            vector, chosen = vector ^ other_vector, chosen ^ other_chosen
        if not vector:
            break
        reached[vector.bit_length()] = vector, chosen
    cancelling = [row for place, row in enumerate(ids) if chosen >> place & 1]
    cancelling.sort(key=lambda row: walk_of(row.tobytes(), count))
    return np.array(cancelling[::2]), np.array(cancelling[1::2])


def _vector(op_id: bytes, count: int) -> int:
    walk = walk_of(op_id, count)
    vector = int.from_bytes(op_id, "little")
    for index in range(count):
        added = int.from_bytes(op_id[:16], "little") << 32 | checksum_of(PLAIN.seed_of(*halves_of(op_id)))
        vector = vector << 160 | (added if index in walk else 0)
    pattern = sum(1 << index for index in walk)
    return vector << (1 << count) | 1 << (pattern >> 1)


def test_pitfall_8_a_ground_pair_is_inseparable_until_it_is_salted_or_extended() -> None:
    """Whoever makes ids soon finds two that are in the same of the first 64 symbols: none has one of them alone."""
    first, second, tries = ground_pair(64)
    assert tries < 2000
    pair = rows(first, second)
    for count in (1, 32, 64):
        assert isinstance(decode(difference_of(pair, pair[:0], count)), Undecoded)
    both = Decoded(ours=ids_in(pair), theirs=())
    assert decode(difference_of(pair, pair[:0], 16, SALTED)) == both
    assert decode(difference_of(pair, pair[:0], 300)) == both


def ground_pair(count: int) -> tuple[bytes, bytes, int]:
    """Two ids in the same of the first ``count`` symbols, and how many were made to find them."""
    rng, by_walk = Random(14), dict[tuple[int, ...], bytes]()
    while True:
        op_id = rng.randbytes(16)
        other = by_walk.setdefault(tuple(walk_of(op_id, count)), op_id)
        if other is not op_id:
            return other, op_id, len(by_walk) + 1
