"""How entries are moved in a round: in which order, how many, and what is left for the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from prime_dht.entries.entry import Entry
from prime_dht.ids import OpId
from prime_dht.partition.arcs import ArcSet
from prime_dht.sync.actions import (
    Action,
    Closed,
    Ending,
    Event,
    Fate,
    FetchEntries,
    FetchOps,
    Finish,
    Judged,
    Misconduct,
    Receive,
    Send,
    TimeUp,
)
from prime_dht.sync.declined import Declined, DeclinedOp
from prime_dht.sync.limits import MAX_MESSAGE_BYTES
from prime_dht.sync.messages import WANT_BYTES, Acceptance, Message, Open, Turn, Verdict
from prime_dht.sync.round import Participant, Round
from prime_dht.testing.sync_pair import CIRCLE, DAY_US, NOW_US, Party, Side, location_of, run_round, unsigned_entry

ACCEPTED = Acceptance(arc=CIRCLE, held=CIRCLE)
DONE = Verdict(only_leader=0, only_follower=0, left=ArcSet.empty(sector_bits=9))


def entries(count: int, *, seed: int = 0) -> list[Entry]:
    return [unsigned_entry(b"%d/%d" % (seed, number), NOW_US - DAY_US - number) for number in range(count)]


def steps(begun: Round, party: Party, heard: Sequence[Turn | TimeUp], *, gone_at: int | None = None) -> list[str]:
    """What a round does that is told just this, from the first message it waits for on.

    Args:
        gone_at: the number of the message, from 0, that does not reach the peer any more.
    """
    taken: list[str] = []
    coming = iter(heard)
    event: Event = None
    while True:
        action = begun.step(event)
        taken.append(type(action).__name__)
        match action:
            case Send():
                event = Closed() if taken.count("Send") - 1 == gone_at else None
            case Receive():
                event = next(coming)
            case Finish():
                return taken[taken.index("Receive") :]
            case _:
                event = party.carry_out(action)


def opening(party: Party) -> Open:
    action = Round.initiate(party.node(), nonce=1, rng=Random(2)).step(None)
    assert isinstance(action, Send)
    assert isinstance(action.message, Open)
    return action.message


def test_a_follower_replies_before_it_stores_so_that_the_leader_can_go_on() -> None:
    some, party = entries(4), Party()
    said = [Turn(acceptance=ACCEPTED, entries=tuple(some[:2])), Turn(entries=tuple(some[2:]), verdict=DONE)]
    taken = steps(Round.initiate(party.node(), nonce=1, rng=Random(2)), party, said)
    assert taken == ["Receive", "Send", "StoreEntries", "Receive", "StoreEntries", "Finish"]
    assert len(party.op_ids) == 4


def test_a_leader_sends_its_next_turn_before_it_stores_so_that_the_follower_can_go_on() -> None:
    some, other, party = entries(4), Party(), Party()
    other.put(some)
    said = [Turn(entries=tuple(some[:2]), more=True), Turn(entries=tuple(some[2:]))]
    taken = steps(Round.accept(party.node(), opening(other), rng=Random(2)), party, said)
    assert taken == ["Receive", "Send", "StoreEntries", "Receive", "StoreEntries", "Finish"]
    assert len(party.op_ids) == 4


def test_what_came_is_stored_even_if_the_peer_is_gone_by_then() -> None:
    party = Party()
    said = [Turn(acceptance=ACCEPTED, entries=tuple(entries(2)))]
    taken = steps(Round.initiate(party.node(), nonce=1, rng=Random(2)), party, said, gone_at=1)
    assert taken == ["Receive", "Send", "StoreEntries", "Finish"]
    assert len(party.op_ids) == 2


def test_of_a_turn_with_something_wrong_nothing_is_stored_though_its_entries_come_first() -> None:
    some, other, party = entries(4), Party(), Party()
    other.put(some)
    side = Side(party, Round.accept(party.node(), opening(other), rng=Random(2)))
    side.run()
    side.inbox.append(Turn(entries=tuple(some), wants=(bytes(8),)))
    side.run()
    assert side.charges == [Misconduct.OUT_OF_TURN]
    assert not party.op_ids


@pytest.mark.parametrize("joiner_begins", [True, False])
def test_a_round_too_long_leaves_the_rest_for_the_next_and_charges_nobody(
    monkeypatch: pytest.MonkeyPatch, joiner_begins: bool
) -> None:
    monkeypatch.setattr("prime_dht.sync.lead.MAX_LEADING_TURNS", 10)
    monkeypatch.setattr("prime_dht.sync.lead.MAX_WANTED", 20)
    joiner, replica = Party(), Party()
    replica.put(entries(300))
    endings: list[Ending] = []
    while not endings or endings[-1] is not Ending.EQUAL:
        before = len(joiner.op_ids)
        ran = run_round(*((joiner, replica) if joiner_begins else (replica, joiner)), turn_bytes=2000)
        assert ran.initiator.charges == ran.responder.charges == []
        assert ran.outcomes[0].ending is ran.outcomes[1].ending
        endings.append(ran.outcomes[0].ending)
        if endings[-1] is not Ending.EQUAL:
            assert ran.outcomes[0].ending is Ending.PARTIAL
            assert not ran.outcomes[0].equal
            assert before < len(joiner.op_ids) < 300
    assert len(endings) > 1
    assert joiner.op_ids == replica.op_ids


def test_a_round_whose_time_is_up_keeps_what_came_and_charges_nobody() -> None:
    some, other, party = entries(4), Party(), Party()
    other.put(some)
    begun = Round.accept(party.node(), opening(other), rng=Random(2))
    taken = steps(begun, party, [Turn(entries=tuple(some[:2]), more=True), TimeUp()])
    assert taken == ["Receive", "Send", "StoreEntries", "Receive", "Finish"]
    assert len(party.op_ids) == 2


@pytest.mark.parametrize(
    ("heard", "outcome"), [([], "failed"), ([Turn(acceptance=ACCEPTED, entries=tuple(entries(2)))], "partial(512)")]
)
def test_a_round_whose_time_is_up_has_settled_no_sector_and_before_an_answer_it_has_failed(
    heard: list[Turn], outcome: str
) -> None:
    party = Party()
    side = Side(party, Round.initiate(party.node(), nonce=1, rng=Random(2)))
    side.inbox.extend([*heard, TimeUp()])
    side.run()
    assert (str(side.outcome), len(party.op_ids), side.charges) == (outcome, len(heard) * 2, [])


def test_a_round_whose_time_is_up_while_it_sends_is_over_and_charges_nobody() -> None:
    begun = Round.initiate(Party().node(), nonce=1, rng=Random(2))
    assert isinstance(begun.step(None), Send)
    finish = begun.step(TimeUp())
    assert isinstance(finish, Finish)
    assert (str(finish.outcome), finish.outcome.misconduct) == ("failed", None)


@pytest.mark.parametrize("owner_begins", [True, False])
def test_a_side_that_can_take_nothing_is_not_sent_all_that_it_lacks(
    monkeypatch: pytest.MonkeyPatch, owner_begins: bool
) -> None:
    monkeypatch.setattr("prime_dht.sync.exchange.MAX_POSTPONED_BYTES", 4000)
    owner, full = Party(), Party(judge=lambda _: Judged(Fate.POSTPONED, "no room"))
    owner.put(entries(300))
    ran = run_round(*((owner, full) if owner_begins else (full, owner)), turn_bytes=2000)
    of_owner, of_full = ran.outcomes if owner_begins else reversed(ran.outcomes)
    assert (str(of_full), of_full.stored) == ("partial(512)", 0)
    assert 4000 / 165 < of_full.postponed["no room"] < 6000 / 165
    assert of_owner.ending is Ending.FAILED
    assert ran.initiator.charges == ran.responder.charges == []


@pytest.mark.parametrize("count", [0, 5], ids=["which has nothing", "which has something"])
@pytest.mark.parametrize("owner_begins", [True, False])
def test_an_entry_too_large_for_a_message_is_left_and_both_sides_know_its_sector_and_no_other(
    owner_begins: bool, count: int
) -> None:
    owner, other = Party(), Party()
    other.put(entries(count))
    large = [unsigned_entry(b"%d" % n, NOW_US - n, value=bytes(60_000 + n)) for n in range(60)]
    too_large = unsigned_entry(b"too large", NOW_US, value=bytes(MAX_MESSAGE_BYTES))
    owner.put([*large, too_large])
    ran = run_round(*((owner, other) if owner_begins else (other, owner)))
    assert all(sent.frame_bytes <= MAX_MESSAGE_BYTES for sent in ran.sent)
    assert other.op_ids == owner.op_ids - {too_large.op_id}
    assert too_large.op_id in owner.op_ids
    for outcome in ran.outcomes:
        assert outcome.left == ArcSet.of_sectors([location_of(too_large) >> 23], sector_bits=9)


@pytest.mark.parametrize("owner_begins", [True, False])
def test_rings_that_are_equal_between_two_that_differ_are_not_sent(owner_begins: bool) -> None:
    owner, other = Party(), Party()
    old, middle, new = (
        [unsigned_entry(b"%d/%d" % (hours, n), NOW_US - hours * 3_600_000_000 - n) for n in range(count)]
        for hours, count in ((40, 300), (10, 3000), (1, 300))
    )
    owner.put([*old, *middle, *new])
    other.put(middle)
    ran = run_round(*((owner, other) if owner_begins else (other, owner)))
    assert owner.op_ids == other.op_ids
    assert sum(outcome.entries_sent for outcome in ran.outcomes) == 600
    assert sum(outcome.only_ours for outcome in ran.outcomes) == 600


@pytest.mark.parametrize("owner_begins", [True, False])
def test_entries_go_in_turns_as_small_as_the_path_wants_them(owner_begins: bool) -> None:
    owner, other = Party(), Party()
    owner.put(entries(100))
    ran = run_round(*((owner, other) if owner_begins else (other, owner)), turn_bytes=3000)
    counts = [len(sent.message.entries) for sent in ran.sent if isinstance(sent.message, Turn)]
    assert other.op_ids == owner.op_ids
    assert 0 < max(counts) < 3000 / 160


def test_turns_may_become_larger_in_the_middle_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, rounds = Round.limit_turns, list[Round]()

    def noted(one: Round, turn_bytes: int) -> None:
        rounds.append(one)
        limit(one, turn_bytes)

    def enlarge(number: int, _: Message) -> None:
        if number == 8:
            for one in rounds:
                limit(one, 6000)

    monkeypatch.setattr(Round, "limit_turns", noted)
    owner, other = Party(), Party()
    owner.put(entries(200))
    ran = run_round(owner, other, turn_bytes=3000, between=enlarge)
    counts = [len(sent.message.entries) for sent in ran.sent if isinstance(sent.message, Turn)]
    assert other.op_ids == owner.op_ids
    assert 0 < max(counts[:8]) < 3000 / 160 < max(counts) < 6000 / 160


# What is refused, and what goes while it is on its way.


@pytest.mark.parametrize("owner_begins", [True, False])
def test_what_one_key_has_no_room_for_leaves_its_sector_and_keeps_nothing_else_back(
    monkeypatch: pytest.MonkeyPatch, owner_begins: bool
) -> None:
    monkeypatch.setattr("prime_dht.sync.exchange.MAX_POSTPONED_BYTES", 4000)
    crowd = [unsigned_entry(b"full", NOW_US - DAY_US - n, writer=b"%d" % n) for n in range(100)]
    some = [entry for entry in entries(200) if location_of(entry) >> 23 != location_of(crowd[0]) >> 23]
    full = Party(judge=lambda e: Judged(Fate.POSTPONED, "no room", is_noted=True) if e in crowd else None)
    owner = Party()
    owner.put([*crowd, *some])
    ran = run_round(*((owner, full) if owner_begins else (full, owner)), turn_bytes=2000)
    assert full.op_ids == {entry.op_id for entry in some}
    of_full = ran.outcomes[owner_begins]
    assert of_full.postponed == {"no room": 100}
    assert of_full.left == ArcSet.of_sectors([location_of(crowd[0]) >> 23], sector_bits=9)


@pytest.mark.parametrize("owner_begins", [True, False])
def test_what_a_side_can_take_comes_in_the_end_though_each_round_is_cut_short_by_what_it_cannot(
    monkeypatch: pytest.MonkeyPatch, owner_begins: bool
) -> None:
    monkeypatch.setattr("prime_dht.sync.exchange.MAX_POSTPONED_BYTES", 4000)
    refused = entries(150)
    some = [unsigned_entry(b"%d" % n, NOW_US - n) for n in range(20)]
    full = Party(judge=lambda entry: Judged(Fate.POSTPONED, "no room") if entry in refused else None)
    owner = Party()
    owner.put([*refused, *some])
    for seed in range(60):
        ran = run_round(*((owner, full) if owner_begins else (full, owner)), seed=seed, turn_bytes=2000)
        assert ran.outcomes[owner_begins].postponed["no room"] < 50
    assert full.op_ids == {entry.op_id for entry in some}


def test_a_side_that_can_remember_no_more_of_what_it_declines_is_not_sent_all_of_that_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prime_dht.sync.exchange.MAX_POSTPONED_BYTES", 4000)
    owner, picky = Party(), Party(judge=lambda _: Judged(Fate.DECLINED, "over limit"), declined=Declined(limit=250))
    owner.put(entries(300))
    first, second = (run_round(picky, owner, seed=seed, turn_bytes=2000).outcomes[0] for seed in (1, 2))
    assert (len(picky.declined), str(second)) == (250, "partial(512)")
    assert 4000 / 165 < second.declined["over limit"] < 6000 / 165
    assert first.declined["over limit"] > 250


class Overwritten(Party):
    """A party in which an entry gives way to a newer one once the store is asked for something of this kind."""

    old: Entry
    new: Entry
    when: type[Action] = FetchEntries

    def carry_out(self, action: Action) -> Event:
        if isinstance(action, self.when) and self.old.op_id in self.op_ids:
            self.put([self.new])
        return super().carry_out(action)


@pytest.mark.parametrize("when", [FetchEntries, FetchOps], ids=["before it is sent", "before it is found"])
def test_who_is_sent_neither_an_entry_nor_what_took_its_place_does_not_take_the_sector_for_equal(
    when: type[Action],
) -> None:
    joiner, replica = Party(), Overwritten()
    replica.old = unsigned_entry(b"k", NOW_US - DAY_US, value=b"old")
    replica.new, replica.when = unsigned_entry(b"k", NOW_US - 1000, value=b"new"), when
    replica.put([replica.old, *entries(200)])
    of_joiner, of_replica = run_round(joiner, replica).outcomes
    assert of_replica.led
    assert len(joiner.op_ids) == 200
    assert of_joiner.left == ArcSet.of_sectors([location_of(replica.old) >> 23], sector_bits=9)
    assert str(of_replica) == "equal", "it lacks nothing itself"
    assert str(run_round(joiner, replica).outcomes[0]) == "equal"
    assert joiner.op_ids == replica.op_ids


@pytest.mark.parametrize("count", [0, 50], ids=["and sends nothing", "and sends as much as it wants"])
def test_of_a_sector_in_which_what_it_wanted_was_overwritten_a_leader_is_not_sure_and_of_the_others_it_is(
    count: int,
) -> None:
    leader, follower = Party(), Overwritten()
    follower.old = unsigned_entry(b"k", NOW_US - DAY_US, value=b"old")
    follower.new = unsigned_entry(b"k", NOW_US - 1000, value=b"new")
    follower.put([follower.old, *entries(20)])
    leader.put(entries(count, seed=1))
    of_follower, of_leader = run_round(follower, leader).outcomes
    assert of_leader.led
    assert (of_leader.stored, of_leader.entries_sent) == (20, count)
    assert of_leader.left == ArcSet.of_sectors([location_of(follower.old) >> 23], sector_bits=9)
    assert str(of_follower) == "equal", "it lacks nothing itself"
    assert str(run_round(follower, leader).outcomes[1]) == "equal"
    assert leader.op_ids == follower.op_ids


@pytest.mark.parametrize("owner_begins", [True, False])
def test_that_another_entry_of_the_sector_gave_way_to_what_came_does_not_explain_one_that_vanished(
    monkeypatch: pytest.MonkeyPatch, owner_begins: bool
) -> None:
    monkeypatch.setattr("prime_dht.sync.exchange.MAX_POSTPONED_BYTES", 4000)
    other, owner = Party(), Overwritten()
    owner.old = unsigned_entry(b"k", NOW_US - DAY_US, value=b"old")
    owner.new = unsigned_entry(b"k", NOW_US - 1000, value=b"new")
    beside = [unsigned_entry(b"k", NOW_US - days * DAY_US, writer=b"writer of others") for days in (9, 3)]
    owner.put([owner.old, beside[0], *entries(100)])
    other.put([beside[1]])
    ran = run_round(*((owner, other) if owner_begins else (other, owner)), seed=2, turn_bytes=2000)
    assert beside[1].op_id in owner.op_ids
    assert owner.new.op_id not in other.op_ids
    assert ran.outcomes[owner_begins].left == ArcSet.of_sectors([location_of(owner.old) >> 23], sector_bits=9)


class Behind(Party):
    """A party that was ahead when it put something, and knows now what the time is."""

    def node(self) -> Participant:
        return replace(super().node(), latest_us=NOW_US)


@pytest.mark.parametrize("owner_begins", [True, False])
def test_what_is_dated_too_far_ahead_is_not_sent_and_leaves_no_sector_to_either_side(owner_begins: bool) -> None:
    owner, other = Behind(), Party()
    owner.put([*entries(4), *(unsigned_entry(b"ahead %d" % n, NOW_US + DAY_US) for n in range(3))])
    ran = run_round(*((owner, other) if owner_begins else (other, owner)))
    assert other.op_ids == {entry.op_id for entry in entries(4)}
    assert [outcome.equal for outcome in ran.outcomes] == [CIRCLE, CIRCLE]


@pytest.mark.parametrize("owner_begins", [True, False])
def test_of_a_side_that_cannot_remember_all_that_went_nothing_is_taken_for_equal(
    monkeypatch: pytest.MonkeyPatch, owner_begins: bool
) -> None:
    # By cells, of which that of what took the place of the old is not asked for.
    monkeypatch.setattr("prime_dht.sync.finding.MAX_FLIGHTS", 0)
    monkeypatch.setattr("prime_dht.sync.finding._FEW_OPS", 0)
    monkeypatch.setattr("prime_dht.sync.view.MAX_CHANGES", 0)
    other, owner = Party(), Overwritten()
    owner.old = unsigned_entry(b"k", NOW_US - 30 * DAY_US, value=b"old")
    owner.new, owner.when = unsigned_entry(b"k", NOW_US - 1000, value=b"new"), FetchOps
    other.put(entries(400))
    owner.put([owner.old, *entries(400), *entries(50, seed=1)])
    ran = run_round(*((owner, other) if owner_begins else (other, owner)))
    assert owner.new.op_id not in other.op_ids
    assert ran.outcomes[owner_begins].equal == ArcSet.empty(sector_bits=9)
    assert ran.outcomes[not owner_begins].equal == CIRCLE, "it lacks nothing itself"


@pytest.mark.parametrize("loser_begins", [True, False])
def test_where_the_store_may_have_lost_something_while_the_round_went_on_is_not_equal(loser_begins: bool) -> None:
    loser, other = Party(), Party()
    loser.put(entries(4))
    other.put([*entries(4), *entries(2, seed=1)])

    def lose(_number: int, _message: Message) -> None:
        if loser.view is not None:
            loser.view.unsure([3, 5])

    ran = run_round(*((loser, other) if loser_begins else (other, loser)), between=lose)
    of_loser, of_other = ran.outcomes if loser_begins else reversed(ran.outcomes)
    assert of_loser.left == ArcSet.of_sectors([3, 5], sector_bits=9)
    assert of_other.equal == CIRCLE


def test_that_an_entry_vanished_is_seen_though_as_many_are_sent_as_were_wanted() -> None:
    owner, leader = Overwritten(), Party()
    owner.old = unsigned_entry(b"k", NOW_US - DAY_US, value=b"old")
    owner.new = unsigned_entry(b"k", NOW_US - 1000, value=b"new")
    one, other = entries(2)
    namesake = replace(other, op_id=OpId(one.op_id[:WANT_BYTES] + other.op_id[WANT_BYTES:]))
    leader.put([namesake])
    owner.put([owner.old, one, namesake])
    _, of_leader = run_round(owner, leader).outcomes
    assert of_leader.led
    assert of_leader.entries_received == 2
    assert of_leader.left == ArcSet.of_sectors([location_of(owner.old) >> 23], sector_bits=9)


def test_of_a_follower_that_does_not_say_what_vanished_a_leader_takes_nothing_for_equal() -> None:
    other, party = Party(), Party()
    other.put(entries(4))
    side = Side(party, Round.accept(party.node(), opening(other), rng=Random(2)))
    side.run()
    side.inbox.append(Turn(entries=tuple(entries(3))))
    side.run()
    assert (str(side.outcome), side.charges) == ("partial(512)", [])


def test_what_gave_way_to_an_entry_of_the_other_side_is_not_missed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prime_dht.sync.exchange.MAX_POSTPONED_BYTES", 4000)
    ours = [unsigned_entry(b"%d" % n, NOW_US - DAY_US, value=b"old") for n in range(100)]
    theirs = [unsigned_entry(b"%d" % n, NOW_US - 1000, value=b"new") for n in range(100)]
    one, other = Party(), Party()
    one.put(theirs)
    other.put(ours)
    ran = run_round(one, other, turn_bytes=2000)
    assert [str(outcome) for outcome in ran.outcomes] == ["equal", "equal"]
    assert ran.outcomes[1].entries_sent < 100, "some had given way before they were sent"
    assert one.op_ids == other.op_ids == {entry.op_id for entry in theirs}


def test_what_the_other_side_declined_of_a_long_transfer_is_not_taken_for_lost() -> None:
    joiner, replica = Party(), Party()
    replica.put(unsigned_entry(b"%d" % n, NOW_US - DAY_US, value=bytes(60_000)) for n in range(40))
    op = entries(1)[0]
    header = op.header
    replica.declined.add(
        DeclinedOp(
            op_id=op.op_id,
            location=location_of(op),
            created_at_us=header.created_at_us,
            retain_until_us=header.retain_until_us,
        )
    )
    ran = run_round(replica, joiner)
    assert ran.outcomes[1].led
    assert str(ran.outcomes[1]) == "equal"
    assert joiner.op_ids == replica.op_ids
