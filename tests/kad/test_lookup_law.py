"""Scenario 6 as a law, against a swarm that does anything a swarm can do to a lookup."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.ids import KadKey, PeerId
from prime_dht.kad.hearsay import DOUBTED_AT_ONCE
from prime_dht.kad.lookup import Finished, Lookup, LookupConfig, Outcome, Query, WaitUntil
from prime_dht.testing.tiny import tiny_contact

LOCAL = KadKey(255)


@given(
    rng=st.randoms(use_true_random=False),
    seeds=st.sets(st.integers(0, 255), max_size=20),
    k=st.integers(1, 6),
    alpha=st.integers(1, 6),
    max_queries=st.integers(1, 60),
    max_silent=st.integers(1, 6),
)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_under_any_answers_failures_and_lies_it_ends_within_its_bounds(
    rng: Random, seeds: set[int], k: int, alpha: int, max_queries: int, max_silent: int
) -> None:
    """Scenario 6, as a law: peers answer in any order, late or never, and name anybody, themselves and us included."""
    config = LookupConfig(
        k=k,
        alpha=min(alpha, k),
        slow_after_s=1.0,
        silent_after_s=2.0,
        query_timeout_s=3.0,
        timeout_s=200.0,
        max_queries=max_queries,
        max_silent=max_silent,
    )
    target = KadKey(rng.randrange(256))
    lookup = Lookup(target, map(tiny_contact, seeds), local=LOCAL, config=config, now_s=0.0)
    now_s = 0.0
    heard = seeds - {LOCAL}
    asked_at_s: dict[int, float] = {}
    open_queries: dict[int, float] = {}
    answered: set[int] = set()
    failed: set[int] = set()
    while True:
        actions = lookup.next(now_s)
        last = actions[-1]
        for key in [key for key, at_s in open_queries.items() if now_s >= at_s + config.query_timeout_s]:
            failed.add(key)
            del open_queries[key]
        if isinstance(last, Finished):
            assert len(actions) == 1
            break
        for key in [action.contact.kad_key for action in actions if isinstance(action, Query)]:
            assert key not in asked_at_s, "nobody is asked twice"
            assert key in heard
            asked_at_s[key] = open_queries[key] = now_s
        prompt = [key for key, at_s in open_queries.items() if now_s < at_s + config.slow_after_s]
        not_silent = [key for key, at_s in open_queries.items() if now_s < at_s + config.silent_after_s]
        has_doubts = len(failed) + len(open_queries) - len(not_silent) >= max_silent
        at_most = DOUBTED_AT_ONCE if has_doubts else config.alpha
        assert len(prompt) <= at_most
        assert len(not_silent if has_doubts else open_queries) <= at_most + config.k
        assert isinstance(last, WaitUntil)
        assert last.at_s > now_s
        choice = rng.random()
        late = sorted(failed - answered)
        if (open_queries and choice < 0.6) or (late and choice < 0.65):
            key = rng.choice(sorted(open_queries) if open_queries and choice < 0.6 else late)
            open_queries.pop(key, None)
            named = [rng.choice([rng.randrange(256), key, LOCAL, target]) for _ in range(rng.randrange(6))]
            lookup.on_reply(tiny_contact(key), map(tiny_contact, named), now_s)
            answered.add(key)
            heard |= set(named)
        elif open_queries and choice < 0.8:
            key = rng.choice(sorted(open_queries))
            lookup.on_failure(PeerId(bytes([key])), "refused")
            del open_queries[key]
            failed.add(key)
        else:
            now_s = last.at_s
    result = last.result
    found = [contact.kad_key for contact in result.closest]
    assert len(asked_at_s) == len(result.path) <= max_queries
    assert found == sorted(answered, key=lambda key: key ^ target)[:k]
    if result.outcome is Outcome.CONVERGED:
        assert len(found) == k
        nearer = {key for key in heard - {LOCAL} if key ^ target < found[-1] ^ target}
        assert nearer <= answered | failed
    elif result.outcome is Outcome.EXHAUSTED:
        assert len(found) < k
        assert heard - {LOCAL} == answered | failed
    else:
        assert len(asked_at_s) == max_queries
