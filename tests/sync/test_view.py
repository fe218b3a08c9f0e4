"""What a node had when a round began, and how rounds use it: frozen symbols, layouts, forgeries, pages."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.cells import Cells
from prime_dht.partition.location import sector_locations
from prime_dht.partition.parameters import PARAMETERS
from prime_dht.partition.partition import Partition
from prime_dht.partition.slices import Layout, layout_at
from prime_dht.sync import limits
from prime_dht.sync.actions import Send
from prime_dht.sync.declined import Declined, DeclinedOp
from prime_dht.sync.messages import AskCells, AskIds, AskSymbols, Open, Probe, Turn
from prime_dht.sync.round import Round
from prime_dht.sync.view import View
from prime_dht.testing.sync_pair import CIRCLE, NOW_US, Party, Side, location_of, run_round, unsigned_entry

LOCATION = 5 << 23


def op_id(number: int) -> bytes:
    return number.to_bytes(16, "big") * 2


def view_of(count: int, declined: Declined | None = None) -> tuple[Partition, View]:
    partition = Partition(PARAMETERS, now_us=NOW_US)
    for number in range(count):
        partition.insert(op_id(number), LOCATION, NOW_US - 1000 + number)
    return partition, View.of(partition, declined or ())


def test_a_view_stays_as_it_was() -> None:
    partition, view = view_of(3)
    before, checksums = view.digest(CIRCLE), view.checksums(CIRCLE)
    partition.insert(op_id(99), LOCATION, NOW_US)
    partition.remove(op_id(0), LOCATION, NOW_US - 1000)
    partition.advance(NOW_US + PARAMETERS.unit_us)
    assert view.digest(CIRCLE) == before
    assert view.checksums(CIRCLE) == checksums
    assert View.of(partition).digest(CIRCLE) != before


def test_declined_ops_count_as_if_they_were_here() -> None:
    declined = Declined()
    declined.add(DeclinedOp(op_id=op_id(3), location=LOCATION, created_at_us=NOW_US - 997, retain_until_us=NOW_US))
    _, with_declined = view_of(3, declined)
    _, with_all = view_of(4)
    assert with_declined.digest(CIRCLE) == with_all.digest(CIRCLE)
    assert with_declined.was_here(op_id(3)[:16], is_here=False)
    assert with_declined.ids_of_sector(5, [op_id(0), op_id(1), op_id(2)]) == [op_id(n) for n in range(4)]
    assert with_declined.ids_of_sector(6, []) == []


def test_what_the_store_has_now_is_brought_back_to_the_moment_of_the_view() -> None:
    _, view = view_of(3)
    view.inserted(op_id(7))
    view.removed(op_id(0), LOCATION, NOW_US - 1000)
    assert view.was_here(op_id(0)[:16], is_here=False)
    assert view.was_here(op_id(1)[:16], is_here=True)
    assert not view.was_here(op_id(7)[:16], is_here=True)
    assert not view.was_here(op_id(8)[:16], is_here=False)
    assert view.ids_of_sector(5, [op_id(1), op_id(2), op_id(7)]) == [op_id(0), op_id(1), op_id(2)]


def test_what_came_and_went_again_was_never_there_and_the_reverse() -> None:
    _, view = view_of(1)
    view.inserted(op_id(7))
    view.removed(op_id(7), LOCATION, NOW_US)
    view.removed(op_id(0), LOCATION, NOW_US - 1000)
    view.inserted(op_id(0))
    assert not view.was_here(op_id(7)[:16], is_here=False)
    assert view.was_here(op_id(0)[:16], is_here=True)


def test_a_view_that_changed_too_much_says_it_is_not_exact() -> None:
    _, view = view_of(1)
    for number in range(limits.MAX_CHANGES):
        view.inserted(op_id(number))
    assert view.is_exact
    view.inserted(op_id(limits.MAX_CHANGES))
    assert not view.is_exact


def test_a_view_remembers_what_goes_however_much_came_and_says_if_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prime_dht.sync.view.MAX_CHANGES", 1)
    _, view = view_of(2)
    for number in (7, 8):
        view.inserted(op_id(number))
    view.removed(op_id(0), LOCATION, NOW_US - 1000)
    assert view.sector_of_gone(op_id(0)) == 5
    assert (view.is_exact, view.knows_all_gone) == (False, True)
    view.removed(op_id(1), LOCATION, NOW_US - 999)
    assert not view.knows_all_gone


def test_a_page_has_the_declined_ops_of_its_interval_and_not_what_came() -> None:
    declined = Declined()
    for number in (10, 20):
        declined.add(DeclinedOp(op_id=op_id(number), location=LOCATION, created_at_us=number, retain_until_us=NOW_US))
    _, view = view_of(0, declined)
    view.inserted(op_id(12))
    stored = [(5, op_id(5)), (12, op_id(12)), (15, op_id(15))]
    arc = sector_locations(5, sector_bits=9)
    page = view.page(stored, arc, range(100), (5, op_id(5)), (15, op_id(15)))
    assert page == [(10, op_id(10)), (15, op_id(15))]
    assert view.page(stored, arc, range(100), None, None)[-1] == (20, op_id(20))
    assert view.page([], sector_locations(6, sector_bits=9), range(100), None, None) == []


def test_a_page_has_what_went_since_in_its_place() -> None:
    _, view = view_of(3)
    arc = sector_locations(5, sector_bits=9)
    before = view.page([(NOW_US - 1000 + n, op_id(n)) for n in range(3)], arc, range(NOW_US), None, None)
    view.removed(op_id(1), LOCATION, NOW_US - 999)
    assert view.page([(NOW_US - 1000, op_id(0)), (NOW_US - 998, op_id(2))], arc, range(NOW_US), None, None) == before
    view.inserted(op_id(1))
    assert view.page([before[1]], arc, range(NOW_US), None, None) == [before[1]]


@pytest.mark.parametrize("count", [1, 100])
def test_however_many_were_declined_they_count_as_if_they_were_here(count: int) -> None:
    declined, partition = Declined(), Partition(PARAMETERS, now_us=NOW_US)
    for number in range(count):
        op = DeclinedOp(
            op_id=op_id(number), location=number << 25, created_at_us=NOW_US - number, retain_until_us=NOW_US
        )
        declined.add(op)
        partition.insert(op.op_id, op.location, op.created_at_us)
    view, with_all = View.of(Partition(PARAMETERS, now_us=NOW_US), declined), View.of(partition)
    assert view.digest(CIRCLE) == with_all.digest(CIRCLE)
    layout = partition.layout
    assert view.cells_at(layout, CIRCLE, ()) == with_all.cells_at(layout, CIRCLE, ())


def test_cells_are_told_at_a_later_layout_too() -> None:
    partition = Partition(PARAMETERS, now_us=NOW_US)
    for number in range(300):  # of every age: in the disc, the rings and the tail
        partition.insert(op_id(number), LOCATION, NOW_US - (1 << (number % 45)) - number)
    view = View.of(partition)
    now = view.cells_at(view.layout, CIRCLE, ())
    later = layout_at(NOW_US + 2 * PARAMETERS.unit_us, PARAMETERS)
    partition.advance(NOW_US + 2 * PARAMETERS.unit_us)
    moved = View.of(partition).cells_at(later, CIRCLE, ())
    assert moved != now
    for _ in range(2):
        assert view.cells_at(later, CIRCLE, ()) == moved
        assert view.cells_at(view.layout, CIRCLE, ()) == now
    assert sum(combined.count for combined in moved.values()) == 300


def test_cells_are_moved_to_a_later_layout_once_however_often_it_is_asked_for_in_turn_with_the_view_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, view = view_of(3)
    later = layout_at(NOW_US + 2 * PARAMETERS.unit_us, PARAMETERS)
    moved: list[Layout] = []
    moved_to = Cells.moved_to

    def noted(cells: Cells, layout: Layout) -> Cells:
        moved.append(layout)
        return moved_to(cells, layout)

    monkeypatch.setattr(Cells, "moved_to", noted)
    told = [view.cells_at(layout, CIRCLE, ()) for layout in (view.layout, later) * 3]
    assert moved == [later]
    assert told == told[:2] * 3


def test_the_declined_set_is_bounded_and_forgets_what_retired() -> None:
    declined = Declined(limit=2)
    ops = [DeclinedOp(op_id=op_id(n), location=LOCATION, created_at_us=n, retain_until_us=100 + n) for n in range(3)]
    assert [declined.add(op) for op in ops] == [True, True, False]
    assert declined.add(ops[0])
    declined.retire(101)
    assert [op in declined for op in (op_id(0), op_id(1))] == [False, True]
    declined.discard(op_id(1))
    assert not list(declined)


def test_what_was_put_off_is_remembered_until_the_next_tick_and_not_once_it_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prime_dht.sync.declined.MAX_PUT_OFF", 3)
    declined = Declined(limit=1)
    ops = [DeclinedOp(op_id=op_id(n), location=LOCATION, created_at_us=n, retain_until_us=1000) for n in range(5)]
    assert declined.add(ops[4])
    assert [declined.put_off(op, now_us=170) for op in ops] == [True, True, True, False, True]
    assert len(declined) == 4
    declined.discard(op_id(0))
    declined.retire(100)
    assert [op.op_id for op in declined if op.is_put_off] == [op_id(1), op_id(2)]
    declined.retire(200)
    assert [op.op_id for op in declined] == [op_id(4)]
    declined.put_off(ops[0], now_us=270)
    declined.forget_put_off()
    assert [op.op_id for op in declined] == [op_id(4)]


def test_what_is_both_declined_and_put_off_counts_once() -> None:
    op = DeclinedOp(op_id=op_id(3), location=LOCATION, created_at_us=NOW_US - 997, retain_until_us=NOW_US)
    for declined_first in (False, True):
        declined = Declined()
        for is_declined in (declined_first, not declined_first):
            assert declined.add(op) if is_declined else declined.put_off(op, now_us=NOW_US)
        assert list(declined) == [op]
        assert view_of(3, declined)[1].digest(CIRCLE) == view_of(4)[1].digest(CIRCLE)


def test_a_sector_of_which_something_is_put_off_is_not_taken_for_equal_though_it_is_not_asked_for_again() -> None:
    full, other = Party(), Party()
    entry = unsigned_entry(b"k", NOW_US - 1000)
    other.put([entry])
    op = DeclinedOp(op_id=entry.op_id, location=location_of(entry), created_at_us=NOW_US - 1000, retain_until_us=NOW_US)
    full.declined.put_off(op, now_us=NOW_US)
    for one, two in ((full, other), (other, full)):
        ran = run_round(one, two)
        of_full, of_other = ran.outcomes if one is full else reversed(ran.outcomes)
        assert (of_full.entries_received, of_other.entries_sent) == (0, 0)
        assert of_full.left == ArcSet.of_sectors([location_of(entry) >> 23], sector_bits=9)
        assert str(of_other) == "equal"


def test_ids_are_told_page_by_page_however_many_a_sector_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell larger than a message neither stays for ever nor keeps others from being compared."""
    monkeypatch.setattr("prime_dht.sync.follow.IDS_PER_ANSWER", 40)
    for module in ("follow", "finding", "exchange"):
        monkeypatch.setattr(f"prime_dht.sync.{module}.OPS_PER_FETCH", 16)
    one, other = Party(), Party()
    created = Random(1)
    for party, writer in ((one, b"a"), (other, b"b")):
        party.put(
            unsigned_entry(b"one key", NOW_US - created.randrange(500), writer=b"%b%d" % (writer, number))
            for number in range(300)
        )
    ran = run_round(one, other)
    assert one.op_ids == other.op_ids
    assert len(one.op_ids) == 600
    asked = [question for sent in ran.sent if isinstance(sent.message, Turn) for question in sent.message.questions]
    assert sum(isinstance(question, AskIds) for question in asked) >= 7


def test_sectors_with_too_many_ops_for_symbols_are_settled_by_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prime_dht.sync.exchange.MAX_SECTOR_OPS", 0)
    monkeypatch.setattr("prime_dht.sync.exchange.OPS_PER_FETCH", 64)
    shared = [unsigned_entry(b"one key", NOW_US // 2 - n, writer=b"w%d" % n) for n in range(2000)]
    one, other = Party(), Party()
    one.put(shared)
    other.put(shared[300:])
    ran = run_round(one, other)
    assert one.op_ids == other.op_ids
    kinds = {type(q) for sent in ran.sent if isinstance(sent.message, Turn) for q in sent.message.questions}
    assert kinds >= {AskSymbols, AskCells}


def test_ops_chosen_to_cancel_each_others_symbols_are_found_by_a_salted_probe() -> None:
    """Both sides' tops and plain symbols agree although they hold different ops."""
    one, other = Party(), Party()
    mine = [unsigned_entry(b"key", NOW_US - n, writer=b"a%d" % n) for n in range(3)]
    yours = [unsigned_entry(b"key", NOW_US - n, writer=b"b%d" % n) for n in range(3)]
    one.put(mine)
    other.put(yours)
    # Grinding such ops takes minutes; a partition that holds the others' has the same effect.
    for entry in yours:
        other.partition.remove(entry.op_id, location_of(entry), entry.header.created_at_us)
    for entry in mine:
        other.partition.insert(entry.op_id, location_of(entry), entry.header.created_at_us)
    sector = location_of(mine[0]) >> 23
    one.arc = other.arc = ArcSet.of_sectors([sector], sector_bits=9)
    assert run_round(one, other, seed=1).outcomes[0].only_ours == 0
    probed = next(ran for seed in range(200) if (ran := run_round(one, other, seed=seed)).outcomes[0].only_ours)
    assert [str(outcome) for outcome in probed.outcomes] == ["equal", "equal"]
    assert one.op_ids == other.op_ids == {entry.op_id for entry in (*mine, *yours)}


def test_a_probe_of_a_sector_that_is_not_in_common_is_passed_over() -> None:
    half = ArcSet.of_prefix(0, 1, sector_bits=9)
    asking, asked = Party(), Party(arc=half)
    stray, *_ = strays = [unsigned_entry(b"key", NOW_US - 1000, writer=b"w%d" % number) for number in range(5)]
    assert not half.covers(location_of(stray))
    asked.put(strays)
    opening = Round.initiate(asking.node(), nonce=1, rng=Random(2), partner_arc=half).step(None)
    assert isinstance(opening, Send)
    assert isinstance(opening.message, Open)
    arc = ArcSet.of_sectors([location_of(stray) >> 23], sector_bits=9)
    probe = Probe(sector=location_of(stray) >> 23, sketch=asking.node().view.sketch(arc, 1))
    side = Side(asked, Round.accept(asked.node(), replace(opening.message, probe=probe), rng=Random(3)))
    (reply,) = side.run()
    assert isinstance(reply, Turn)
    assert (reply.questions, reply.entries, reply.wants) == ((), (), ())
    assert str(side.outcome) == "equal"


def test_ids_that_the_plain_code_cannot_tell_apart_are_found_nevertheless() -> None:
    """Whoever chooses ids can make pairs that are in the same of the first symbols; a salt separates them."""
    rng = np.random.default_rng(3)
    one, other = Party(), Party()
    writers = [b"w%d" % number for number in rng.integers(0, 10**9, 900).tolist()]
    one.put(unsigned_entry(b"one key", NOW_US - 400 * 86_400_000_000, writer=writer) for writer in writers)
    other.put(list(one.entries.values())[:450])
    run_round(one, other)
    assert one.op_ids == other.op_ids
