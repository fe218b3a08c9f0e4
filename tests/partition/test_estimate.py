"""The guess how many ids differ."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from prime_dht.partition.estimate import difference_size
from prime_dht.partition.sketch import MAX_SYMBOLS, SYMBOL_BYTES, Sketch
from prime_dht.testing.sketch_samples import difference_of, random_ids


@pytest.mark.parametrize("ours_of_ten", [0, 3, 5, 10])
@pytest.mark.parametrize("d", [20, 100, 1000, 10_000])
def test_the_size_of_a_difference_is_guessed_within_a_factor(d: int, ours_of_ten: int) -> None:
    """From 32 symbols: between 0.6 and 1.5 of it in 17 of 20 trials at least."""
    rng, cut = Random(d + ours_of_ten), d * ours_of_ten // 10
    trials = [random_ids(rng, d) for _ in range(20)]
    guesses = np.array([difference_size(difference_of(ids[:cut], ids[cut:], 32)) / d for ids in trials])
    assert np.count_nonzero((guesses > 0.6) & (guesses < 1.5)) >= 17
    assert guesses.min() >= abs(2 * cut - d) / d


def test_the_textbook_density_would_guess_far_too_much() -> None:
    """When 30,000 ids of one side are lacking: the count of symbol 1 is some 19,200, as 0.64 says, not 20,000."""
    difference = difference_of(random_ids(Random(1), 30_000), random_ids(Random(2), 0), 32)
    assert 30_000 <= difference_size(difference) < 40_000
    counts = difference.symbols["count"].astype(float)
    textbook = 1 / (1 + np.arange(1, 32) / 2)
    guess = np.mean((counts[1:] - counts[0] * textbook) ** 2 / (textbook * (1 - textbook)))
    assert guess > 100_000


def test_one_symbol_says_how_many_more_one_side_has() -> None:
    ids = random_ids(Random(3), 30)
    assert difference_size(difference_of(ids[:9], ids[9:], 1)) == 12


def test_nothing_is_guessed_of_no_difference() -> None:
    assert difference_size(Sketch(bytes(32 * SYMBOL_BYTES))) == 0


def test_whatever_a_peer_sends_the_guess_is_a_number() -> None:
    rng = Random(4)
    for count in (1, 2, 32, MAX_SYMBOLS):
        assert difference_size(Sketch.decode(rng.randbytes(count * SYMBOL_BYTES))) >= 0
