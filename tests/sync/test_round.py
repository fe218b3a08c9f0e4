"""Rounds between two nodes, from end to end. Numbers in comments are the scenarios of the reference."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.entries.entry import Entry
from prime_dht.errors import LocalProtocolError
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.parameters import PARAMETERS, PartitionParameters
from prime_dht.sync.actions import Ending, Fate, Finish, Judged, Outcome, Receive, Send
from prime_dht.sync.messages import Message, Network, Open, Refusal, Refuse, Turn
from prime_dht.sync.round import Round
from prime_dht.testing.storage_samples import make_entry
from prime_dht.testing.sync_pair import (
    CIRCLE,
    DAY_US,
    NETWORK,
    NOW_US,
    YEAR_US,
    Base,
    Party,
    Ran,
    location_of,
    run_round,
    unsigned_entry,
)

HALVES = tuple(ArcSet.of_prefix(half, 1, sector_bits=9) for half in (0, 1))
NOTHING = ArcSet.empty(sector_bits=9)


def entries(count: int, *, seed: int = 0, ages_us: range = range(YEAR_US)) -> list[Entry]:
    rng = Random(seed)
    return [
        unsigned_entry(b"%d/%d" % (seed, number), NOW_US - rng.randrange(ages_us.start, ages_us.stop))
        for number in range(count)
    ]


def in_arc(found: list[Entry], arc: ArcSet) -> list[Entry]:
    return [entry for entry in found if arc.covers(location_of(entry))]


def shown_held(outcome: Outcome) -> ArcSet:
    """The sectors that are equal now and that the partner held."""
    if outcome.equal is None or outcome.partner_held is None:
        return NOTHING
    return outcome.equal & outcome.partner_held


def told_the_same(ran: Ran) -> bool:
    """Whether each side says that it received what the other says it sent, and both the same of what differed."""
    ours, theirs = ran.outcomes
    sent = (ours.entries_sent, theirs.entries_sent) == (theirs.entries_received, ours.entries_received)
    return sent and (ours.only_ours, ours.only_theirs) == (theirs.only_theirs, theirs.only_ours)


def synced(one: Party, other: Party) -> None:
    """Run a round, and check that it ended as it should where nothing is refused."""
    union = one.op_ids | other.op_ids
    ran = run_round(one, other)
    assert ran.initiator.charges == ran.responder.charges == []
    assert [str(outcome) for outcome in ran.outcomes] == ["equal", "equal"]
    assert one.op_ids == other.op_ids == union
    assert told_the_same(ran)


def test_two_empty_nodes_are_equal_and_prove_nothing_to_each_other() -> None:
    ran = run_round(Party(held=NOTHING), Party(held=NOTHING))
    assert [str(outcome) for outcome in ran.outcomes] == ["equal", "equal"]
    assert [shown_held(outcome) for outcome in ran.outcomes] == [NOTHING, NOTHING]


def test_entries_go_both_ways() -> None:  # 48
    one, other = Party(), Party()
    one.put(entries(2, seed=1))
    other.put(entries(3, seed=2))
    ran = run_round(one, other)
    assert one.op_ids == other.op_ids
    assert len(one.op_ids) == 5
    ours, theirs = ran.outcomes
    assert (ours.only_ours, ours.only_theirs, theirs.only_ours, theirs.only_theirs) == (2, 3, 3, 2)
    assert (ours.entries_sent, ours.entries_received, ours.stored) == (2, 3, 3)
    assert (theirs.entries_sent, theirs.entries_received, theirs.stored) == (3, 2, 2)
    assert (ours.led, theirs.led) == (False, True)


@pytest.mark.parametrize("count", [3, 60, 400, 3000])
@pytest.mark.parametrize(
    "ages_us",
    [range(30 * DAY_US, YEAR_US), range(DAY_US), range(60 * 60 * 1_000_000)],  # 49: disc; 50: rings; the last hour
    ids=["disc", "rings", "hour"],
)
@pytest.mark.parametrize("sides", ["one", "other", "both"])
def test_differences_of_any_age_and_number_are_found_in_one_round(count: int, ages_us: range, sides: str) -> None:
    base = Base(2000)
    one, other = Party(base), Party(base)
    if sides != "other":
        one.put(entries(count, seed=1, ages_us=ages_us))
    if sides != "one":
        other.put(entries(count, seed=2, ages_us=ages_us))
    synced(one, other)


def test_a_joiner_holds_its_arc_after_one_round_with_a_year_of_history() -> None:  # 52, 53, 54
    replica, joiner = Party(), Party(held=NOTHING)
    replica.put(entries(5000))
    ran = run_round(joiner, replica)
    assert joiner.op_ids == replica.op_ids
    assert shown_held(ran.outcomes[0]) == CIRCLE
    third = Party(held=NOTHING)
    synced(replica, third)


def test_whoever_begins_both_end_with_the_same() -> None:
    for seed in range(3):
        one, other, one_again, other_again = Party(), Party(), Party(), Party()
        for party in (one, one_again):
            party.put(entries(100, seed=seed))
        for party in (other, other_again):
            party.put(entries(100, seed=seed + 10))
        synced(one, other)
        synced(other_again, one_again)
        assert one.op_ids == one_again.op_ids


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    common=st.integers(0, 300),
    ours=st.integers(0, 400),
    theirs=st.integers(0, 400),
    seed=st.integers(0, 2**32),
    ages_us=st.sampled_from([range(YEAR_US), range(DAY_US), range(60_000_000)]),
    keys=st.sampled_from([3, 50, 10**9]),
)
def test_any_two_stores_converge_in_one_round_to_their_join(
    common: int, ours: int, theirs: int, seed: int, ages_us: range, keys: int
) -> None:
    """With few keys many are in one sector, and many entries supersede others in their slots."""
    rng = Random(seed)

    def some(count: int) -> list[Entry]:
        return [
            unsigned_entry(b"%d" % rng.randrange(keys), NOW_US - rng.randrange(len(ages_us)), writer=b"w%d" % (i % 7))
            for i in range(count)
        ]

    shared, one, other, both = some(common), Party(), Party(), Party()
    mine, yours = some(ours), some(theirs)
    one.put([*shared, *mine])
    other.put([*yours, *shared])
    both.put([*shared, *mine, *yours])
    ran = run_round(one, other, seed=seed)
    assert one.op_ids == other.op_ids == both.op_ids
    assert [str(outcome) for outcome in ran.outcomes] == ["equal", "equal"]
    assert ran.initiator.charges == ran.responder.charges == []
    assert told_the_same(ran)


def test_an_entry_superseded_in_its_slot_is_not_brought_back() -> None:
    older, newer = unsigned_entry(b"key", NOW_US - 20), unsigned_entry(b"key", NOW_US - 10)
    one, other = Party(), Party()
    one.put([older])
    other.put([newer])
    ran = run_round(one, other)
    assert one.op_ids == other.op_ids == {newer.op_id}
    assert [outcome.ending for outcome in ran.outcomes] == [Ending.EQUAL, Ending.EQUAL]


# Arcs.


def test_only_the_common_arc_is_compared_and_transferred() -> None:  # 35, 37
    one, other = Party(arc=HALVES[0]), Party(arc=CIRCLE)
    there = entries(200, seed=2)
    other.put(there)
    ran = run_round(one, other)
    assert one.op_ids == {entry.op_id for entry in in_arc(there, HALVES[0])}
    assert [outcome.common for outcome in ran.outcomes] == [HALVES[0], HALVES[0]]
    assert ran.outcomes[0].partner_arc == CIRCLE


@pytest.mark.parametrize("partner_arc", [None, HALVES[1], CIRCLE])
def test_the_initiator_leads_if_it_did_not_know_the_partners_arc(partner_arc: ArcSet | None) -> None:
    one, other = Party(arc=CIRCLE), Party(arc=HALVES[1])
    one.put(entries(50, seed=1))
    other.put(in_arc(entries(50, seed=2), HALVES[1]))
    expected = {entry.op_id for entry in in_arc(entries(50, seed=1) + entries(50, seed=2), HALVES[1])}
    ran = run_round(one, other, partner_arc=partner_arc)
    assert ran.outcomes[0].led is (partner_arc != HALVES[1])
    assert other.op_ids == expected
    assert expected <= one.op_ids
    assert all(outcome.ending is Ending.EQUAL and outcome.common == HALVES[1] for outcome in ran.outcomes)


def test_nodes_without_a_common_sector_refuse_each_other() -> None:
    ran = run_round(Party(arc=HALVES[0]), Party(arc=HALVES[1]))
    assert [str(outcome) for outcome in ran.outcomes] == ["refused(no sector in common)"] * 2


def test_a_node_without_an_arc_cannot_take_part() -> None:  # 40
    with pytest.raises(LocalProtocolError, match="without an arc"):
        Round.initiate(Party(arc=NOTHING).node(), nonce=0, rng=Random(0))


def test_held_grows_over_equal_sectors_that_the_partner_held() -> None:  # 47
    one, other = Party(held=NOTHING), Party(held=HALVES[0])
    ran = run_round(one, other)
    assert shown_held(ran.outcomes[0]) == HALVES[0]
    late = entries(1)[0]
    other.put([late])
    one.judge = lambda entry: Judged(Fate.POSTPONED, "no room")
    ran = run_round(one, other)
    sector = location_of(late) >> 23
    assert shown_held(ran.outcomes[0]) == HALVES[0] - ArcSet.of_sectors([sector], sector_bits=9)
    assert ran.outcomes[0].ending is Ending.PARTIAL
    assert ran.outcomes[1].ending is Ending.EQUAL


# Parameters, clocks, refusals.


@pytest.mark.parametrize(
    ("network", "refusal", "text"),
    [
        (replace(NETWORK, network_id="test"), Refusal.NETWORK, "network 'main', not 'test'"),
        (replace(NETWORK, version=2), Refusal.VERSION, "version 1, not 2"),
        (replace(NETWORK, max_ttl_us=86_400_000_000), Refusal.PARAMETERS, "max_ttl 365d, not 1d"),
        (
            replace(NETWORK, parameters=PartitionParameters(unit_us=60_000_000, factor=8, sector_bits=12)),
            Refusal.PARAMETERS,
            "unit 15m, not 1m; factor 9, not 8; sector_bits 9, not 12",
        ),
    ],
)
def test_another_network_is_refused_with_what_differs(network: Network, refusal: Refusal, text: str) -> None:
    sector_bits = network.parameters.sector_bits
    stranger = Party(Base(0, network=network), network=network, arc=ArcSet.full(sector_bits=sector_bits))
    stranger.put(entries(1))
    here = Party()
    ran = run_round(stranger, here)
    assert ran.outcomes[0].refusal == Refuse(refusal, text)
    assert not here.op_ids


def test_clocks_a_tick_apart_do_not_matter() -> None:
    for ticks in (1, 2):
        for ages_us in (range(YEAR_US), range(60 * 60 * 1_000_000)):
            one, other = Party(now_us=NOW_US + ticks * PARAMETERS.unit_us), Party()
            one.put(entries(700, seed=1, ages_us=ages_us))
            other.put(entries(600, seed=2, ages_us=ages_us))
            synced(one, other)
            other.put(entries(200, seed=3, ages_us=ages_us))
            synced(other, one)


def test_clocks_further_apart_are_refused() -> None:
    ran = run_round(Party(now_us=NOW_US + 3 * PARAMETERS.unit_us), Party())
    assert [str(outcome) for outcome in ran.outcomes] == ["refused(the clocks are too far apart)"] * 2
    half = Party(arc=HALVES[0], now_us=NOW_US + 3 * PARAMETERS.unit_us)
    assert run_round(Party(), half).outcomes[0].ending is Ending.REFUSED


def test_a_round_with_a_node_that_is_busy_ends_at_once_and_says_so() -> None:  # 38, 43
    begun = Round.initiate(Party().node(), nonce=1, rng=Random(1))
    assert isinstance(begun.step(None), Send)
    assert isinstance(begun.step(None), Receive)
    finish = begun.step(Refuse(Refusal.BUSY))
    assert isinstance(finish, Finish)
    assert str(finish.outcome) == "refused(busy)"


# Declined and postponed entries.


def test_what_was_declined_is_not_offered_again_and_the_round_says_so() -> None:
    picky, other = Party(), Party()
    picky.judge = lambda entry: Judged(Fate.DECLINED, "over limit")
    other.put(entries(5))
    first = run_round(picky, other)
    assert str(first.outcomes[0]) == "equal-declined(5)"
    assert first.outcomes[0].declined == {"over limit": 5}
    for one, two in ((picky, other), (other, picky)):
        again = run_round(one, two)
        assert [str(outcome) for outcome in again.outcomes] == ["equal", "equal"]
        assert again.message_count == 2
        assert again.outcomes[0].entries_received == 0


def test_a_third_node_is_not_promised_what_was_declined() -> None:
    picky, other, third = Party(), Party(), Party()
    picky.judge = lambda entry: Judged(Fate.DECLINED, "over limit")
    other.put(entries(5))
    run_round(picky, other)
    for one, two in ((third, picky), (picky, third)):
        ran = run_round(one, two)
        assert [str(outcome) for outcome in ran.outcomes] == ["equal", "equal"]
        assert not third.op_ids
    synced(third, other)


def test_thousands_of_declined_entries_come_once() -> None:
    picky, other = Party(judge=lambda entry: Judged(Fate.DECLINED, "publisher refused")), Party()
    other.put(entries(6000))
    received = [run_round(picky, other).outcomes[0].entries_received for _ in range(2)]
    assert received == [6000, 0]


@pytest.mark.parametrize("count", [500, 3000])
def test_many_declined_ops_are_left_out_of_pages_of_ids_too(count: int) -> None:
    picky, other = Party(), Party()
    picky.judge = lambda entry: Judged(Fate.DECLINED, "over limit")
    other.put(entries(count))
    run_round(picky, other)
    picky.judge = lambda _: None
    picky.put(entries(2 * count, seed=5))
    ran = run_round(picky, other)
    assert ran.outcomes[0].entries_received == 0
    assert ran.outcomes[1].entries_received == 2 * count


# While a round lasts.


@pytest.mark.parametrize("count", [5, 500])
def test_what_comes_and_goes_during_a_round_does_not_disturb_it(count: int) -> None:
    base = Base(3000)
    one, other = Party(base), Party(base)
    mine, yours = entries(count, seed=1), entries(count, seed=2)
    one.put(mine)
    other.put(yours)
    late = entries(40, seed=3)

    def change(number: int, message: Message) -> None:
        party = (other, one)[number % 2]
        party.put(late[4 * number : 4 * number + 4])
        if number < 3:
            party.remove(((yours, mine)[number % 2])[number])

    ran = run_round(one, other, between=change)
    assert ran.initiator.charges == ran.responder.charges == []
    synced(one, other)


def test_a_dry_run_only_compares() -> None:
    base = Base(500)
    one, other = Party(base), Party(base)
    one.put(entries(300, seed=1))
    other.put(entries(50, seed=2))
    before = one.op_ids, other.op_ids
    ran = run_round(one, other, dry_run=True)
    assert (one.op_ids, other.op_ids) == before
    assert [str(outcome) for outcome in ran.outcomes] == ["compared", "compared"]
    assert (ran.outcomes[0].only_ours, ran.outcomes[0].only_theirs) == (300, 50)
    assert all(not message.message.entries for message in ran.sent if isinstance(message.message, Turn))


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (3, 0), (0, 3), (300, 0), (0, 300)])
def test_a_dry_run_finds_equal_only_those_between_which_nothing_differs(ours: int, theirs: int) -> None:
    one, other = Party(), Party()
    one.put(entries(ours, seed=1))
    other.put(entries(theirs, seed=2))
    ran = run_round(one, other, dry_run=True)
    assert [outcome.equal for outcome in ran.outcomes] == [NOTHING if ours or theirs else CIRCLE] * 2
    assert told_the_same(ran)


def test_a_round_over_the_wire_moves_signed_entries() -> None:
    one, other = Party(now_us=NOW_US), Party(now_us=NOW_US)
    mine = [
        make_entry(b"%d" % i, subkey=b"%d" % i, created_at_us=NOW_US - i, expires_at_us=NOW_US + DAY_US)
        for i in range(9)
    ]
    one.put(mine[:6])
    other.put(mine[3:])
    ran = run_round(one, other, is_wired=True)
    assert one.op_ids == other.op_ids == {entry.op_id for entry in mine}
    assert ran.message_count == 3
    assert isinstance(ran.sent[0].message, Open)


def test_a_round_over_the_wire_of_every_kind_of_question() -> None:
    base = Base(4000)
    for seed, (count, ages_us) in enumerate([(300, range(YEAR_US)), (900, range(DAY_US)), (5000, range(YEAR_US))]):
        one, other = Party(base), Party(base)
        one.put(entries(count, seed=seed, ages_us=ages_us))
        ran = run_round(one, other, is_wired=True, dry_run=True)
        assert ran.outcomes[0].only_ours == count
        assert ran.outcomes[0].ending is Ending.COMPARED


def test_one_in_sixteen_rounds_has_a_probe_which_equal_nodes_pass() -> None:
    base = Base(1000)
    probes = 0
    for seed in range(64):
        ran = run_round(Party(base), Party(base), seed=seed)
        assert [str(outcome) for outcome in ran.outcomes] == ["equal", "equal"]
        opening = ran.sent[0].message
        assert isinstance(opening, Open)
        probes += opening.probe is not None
    assert 1 <= probes <= 9


def test_a_digest_whose_symbols_agree_and_whose_tops_do_not_is_settled_by_cells_and_ids() -> None:
    one, other = Party(), Party()
    mine = unsigned_entry(b"key", NOW_US - 400 * DAY_US)
    one.put([mine])
    other.partition.sketches.insert(mine.op_id, location_of(mine) >> 23)  # as if ops had been chosen to cancel
    ran = run_round(one, other)
    assert one.op_ids == other.op_ids == {mine.op_id}
    assert [str(outcome) for outcome in ran.outcomes] == ["equal", "equal"]


def test_declined_ops_are_not_counted_as_ours() -> None:
    picky, other, third = Party(), Party(), Party()
    picky.judge = lambda entry: Judged(Fate.DECLINED, "over limit")
    other.put(entries(5))
    run_round(picky, other)
    assert run_round(third, picky).outcomes[1].only_ours == 0
