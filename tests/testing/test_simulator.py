from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from prime_dht.ids import KAD_KEY_BITS, KadKey, PeerId
from prime_dht.kad.contact import Contact
from prime_dht.kad.keyspace import closest, common_prefix_length
from prime_dht.kad.lookup import LookupConfig, Outcome
from prime_dht.kad.routing_table import RoutingTable
from prime_dht.testing.simulator import Simulator, measure, perfect_tables, recall, simulated_contacts

CONFIG = LookupConfig()


def grown_swarm(n: int, *, first: int = 1) -> tuple[list[Contact], dict[PeerId, RoutingTable], Simulator]:
    """``n`` nodes, of which ``first`` know each other; each of the rest joined through one of those."""
    rng = Random(n)
    contacts = simulated_contacts(n, rng)
    tables = {contact.peer: RoutingTable(contact.kad_key) for contact in contacts}
    simulator = Simulator(contacts, tables.__getitem__, config=CONFIG, rng=rng, learns=True)
    rng.shuffle(contacts)
    for one in contacts[:first]:
        for other in contacts[:first]:
            tables[one.peer].seen(other, 0.0)
    for joiner in contacts[first:]:
        simulator.bootstrap(joiner.peer, rng.choice(contacts[:first]).peer, rng)
    return contacts, tables, simulator


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_after_bootstrap_a_small_swarm_all_know_each_other(n: int) -> None:
    """Scenario 13."""
    contacts, tables, _ = grown_swarm(n)
    everyone = {contact.peer for contact in contacts}
    for peer, table in tables.items():
        assert {contact.peer for contact in table} == everyone - {peer}


def test_in_a_grown_swarm_of_45_the_closest_found_are_the_closest_there_are() -> None:
    """Scenario 24: 5 nodes that know each other, and 40 that joined through them."""
    contacts, _, simulator = grown_swarm(45, first=5)
    rng = Random(24)
    requests = [(rng.choice(contacts).peer, KadKey(rng.getrandbits(KAD_KEY_BITS))) for _ in range(40)]
    for (origin, target), result in zip(requests, simulator.run(requests), strict=True):
        others = [contact for contact in contacts if contact.peer != origin]
        assert list(result.closest) == closest(others, target, CONFIG.k)


def test_101_lookups_at_once_all_finish_as_if_each_were_alone() -> None:
    """Scenario 19."""
    rng = Random(19)
    contacts = simulated_contacts(200, rng)
    simulator = Simulator(contacts, perfect_tables(contacts, CONFIG.k, seed=19), config=CONFIG, rng=rng)
    requests = [(rng.choice(contacts).peer, KadKey(rng.getrandbits(KAD_KEY_BITS))) for _ in range(101)]
    results = simulator.run(requests)
    assert {result.outcome for result in results} == {Outcome.CONVERGED}
    assert [result.closest for result in results] == [simulator.run([request])[0].closest for request in requests]


def test_a_dead_peer_is_in_no_result_and_leaves_the_table_of_whoever_asked_it() -> None:
    """Scenarios 14, 33."""
    contacts, tables, _ = grown_swarm(20)
    dead = frozenset(contact.peer for contact in contacts[:6])
    origin, target = contacts[-1].peer, contacts[0].kad_key
    simulator = Simulator(contacts, tables.__getitem__, config=CONFIG, rng=Random(1), dead=dead, learns=True)
    result = simulator.run([(origin, target)])[0]
    assert {contact.peer for contact in result.closest} == {contact.peer for contact in contacts[6:-1]}
    assert dead.isdisjoint(contact.peer for contact in tables[origin])


def test_perfect_tables_hold_k_per_bucket_or_all_there_are_and_do_not_depend_on_the_order_of_asking() -> None:
    contacts = simulated_contacts(300, Random(3))
    forwards, backwards = (perfect_tables(contacts, 20, seed=3) for _ in range(2))
    held = {contact.peer: list(forwards(contact.peer)) for contact in contacts}
    for contact in reversed(contacts):
        table = backwards(contact.peer)
        assert list(table) == held[contact.peer]
        population = Counter(common_prefix_length(contact.kad_key, other.kad_key) for other in contacts)
        assert table.bucket_sizes() == [min(20, population[index]) for index in range(KAD_KEY_BITS)]


def test_lookups_over_perfect_tables_find_the_true_closest_at_the_ideal_cost() -> None:
    """The ideal: closest peer at mean depth 1.95, 28 RPCs, for n = 1,000, k = 20, alpha = 10."""
    report = measure(1_000, alpha=10, lookups=100, seed=7)
    assert report.mean_recall == 1.0
    assert report.mean_depth == pytest.approx(1.95, abs=0.2)
    assert report.mean_rpcs == pytest.approx(28, abs=1.5)


def test_a_tenth_of_the_peers_dead_costs_time_but_hardly_any_recall() -> None:
    report = measure(1_000, alpha=3, dead_fraction=0.1, lookups=50, seed=7)
    assert report.mean_recall > 0.95
    assert report.mean_duration_s < CONFIG.timeout_s


def test_recall_counts_the_true_closest_that_were_found() -> None:
    rng = Random(2)
    contacts = simulated_contacts(50, rng)
    simulator = Simulator(contacts, perfect_tables(contacts, 20, seed=2), config=CONFIG, rng=rng)
    origin, *others = contacts
    result = simulator.run([(origin.peer, KadKey(0))])[0]
    assert recall(result, others, 20) == 1.0
    assert recall(result, [contact for contact in others if contact not in result.closest[:5]], 20) == 0.75
