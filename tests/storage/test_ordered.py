"""An ordered dictionary is at every moment what sorting its keys would give."""

from __future__ import annotations

import random

from prime_dht.storage.ordered import Ordered


def test_it_is_what_sorting_would_give() -> None:
    rng = random.Random(1)
    ordered = Ordered[int, int]()
    model: dict[int, int] = {}
    for step in range(400):
        for _ in range(rng.randint(1, 40)):
            key = rng.randrange(800)
            model[key] = step
            ordered.put(key, step)
        if rng.random() < 0.7:
            for key in rng.sample(sorted(model), len(model) // 5):
                del model[key]
                ordered.remove(key)
        if rng.random() < 0.7:
            start, stop = sorted((rng.randrange(800), rng.randrange(800)))
            within = sorted(key for key in model if start <= key < stop)
            assert ordered.count(start, stop) == len(within)
            assert ordered.ends(range(start, stop)) == ((within[0], within[-1]) if within else None)
            assert list(ordered.behind(start)) == sorted(key for key in model if key > start)
        assert ordered.values == model
    assert list(ordered.behind(None)) == sorted(model)
