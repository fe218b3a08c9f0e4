"""Offering the ops of cells, page by page."""

from __future__ import annotations

import pytest

from prime_dht.errors import LocalProtocolError, ValidationError
from prime_dht.partition.cells import Cell
from prime_dht.partition.offer import OP_ID_COST_BYTES, Cursor, Offer, OpQuery
from prime_dht.partition.slices import END_OF_TIME_US, layout_at
from prime_dht.testing.partition_samples import TINY, Replica, SampleOp, make_op

NOW_US = 151
LAYOUT = layout_at(NOW_US, TINY)
OPS = [make_op(1000 * sector + us, sector=sector, created_at_us=us) for sector in (3, 4, 5) for us in range(0, 170, 10)]
REPLICA = Replica(OPS, now_us=NOW_US)


def ids(ops: list[SampleOp]) -> list[bytes]:
    return [op.op_id for op in sorted(ops, key=lambda op: (op.sector, op.created_at_us, op.op_id))]


def pages(cells: list[Cell], *, ops_each: int, replica: Replica = REPLICA) -> list[list[bytes]]:
    """All pages of an offer."""
    found: list[list[bytes]] = []
    cursor: Cursor | None = None
    while not found or cursor:
        offer = Offer(LAYOUT, cells, max_bytes=ops_each * OP_ID_COST_BYTES, after=cursor)
        found.append(replica.fill(offer))
        cursor = offer.cursor
    return found


def test_an_offer_has_all_ops_of_its_cells_and_no_others_in_order() -> None:
    offer = Offer(LAYOUT, [Cell(5, 8), Cell(3, 0), Cell(3, 8)], max_bytes=1 << 16)
    expected = [
        op
        for op in OPS
        if (op.sector == 3 and op.created_at_us < 120) or (op.sector == 5 and 80 <= op.created_at_us < 120)
    ]
    assert REPLICA.fill(offer) == ids(expected)
    assert offer.cursor is None


def test_a_cell_of_the_tail_has_no_end() -> None:
    query = Offer(LAYOUT, [Cell(3, 15)], max_bytes=OP_ID_COST_BYTES).query()
    assert query == OpQuery(range(3 << 27, 4 << 27), range(150, END_OF_TIME_US), None, 1)


@pytest.mark.parametrize("ops_each", [1, 2, 3, 5, 7, 100])
def test_pages_have_every_op_once_and_in_order_however_small_they_are(ops_each: int) -> None:
    cells = [Cell(sector, start) for sector in (3, 5) for start in (0, 8, 15)]
    expected = [op for op in OPS if op.sector != 4 and not 120 <= op.created_at_us < 150]
    found = pages(cells, ops_each=ops_each)
    assert [op_id for page in found for op_id in page] == ids(expected)
    assert all(len(page) == ops_each for page in found[:-1])


def test_a_page_never_exceeds_its_budget() -> None:
    for max_bytes in range(OP_ID_COST_BYTES, 5 * OP_ID_COST_BYTES):
        offer = Offer(LAYOUT, [Cell(3, 0)], max_bytes=max_bytes)
        assert len(REPLICA.fill(offer)) == max_bytes // OP_ID_COST_BYTES


def test_ops_of_one_moment_are_told_apart_by_their_ids() -> None:
    ops = [make_op(number, sector=3) for number in range(10)]
    found = pages([Cell(3, 0)], ops_each=3, replica=Replica(ops, now_us=NOW_US))
    assert [op_id for page in found for op_id in page] == sorted(op.op_id for op in ops)


def test_the_next_page_means_the_same_although_the_layout_has_moved_on() -> None:
    offer = Offer(LAYOUT, [Cell(3, 8), Cell(3, 12), Cell(3, 14), Cell(4, 12)], max_bytes=5 * OP_ID_COST_BYTES)
    first = REPLICA.fill(offer)
    later = layout_at(231, TINY)
    assert later.full_count == 2
    following = Offer(later, [Cell(3, 8), Cell(4, 8)], max_bytes=1 << 16, after=offer.cursor)
    expected = [op for op in OPS if op.sector in (3, 4) and 80 <= op.created_at_us < 160]
    assert first + REPLICA.fill(following) == ids(expected)


def test_a_budget_too_small_for_one_op_is_an_error() -> None:
    with pytest.raises(ValidationError):
        Offer(LAYOUT, [], max_bytes=OP_ID_COST_BYTES - 1)


def test_a_cell_that_there_is_not_is_an_error() -> None:
    with pytest.raises(ValidationError, match="no slice"):
        Offer(LAYOUT, [Cell(3, 9)], max_bytes=1 << 16).query()


def test_an_offer_takes_no_more_than_it_asked_for() -> None:
    offer = Offer(LAYOUT, [Cell(3, 0)], max_bytes=OP_ID_COST_BYTES)
    with pytest.raises(LocalProtocolError):
        offer.take([(0, b"one"), (1, b"other")])
    offer.take([(0, b"one")])
    for more in ([(1, b"other")], []):
        with pytest.raises(LocalProtocolError):
            offer.take(more)


def test_an_offer_that_asks_for_nothing_takes_nothing() -> None:
    offer = Offer(LAYOUT, [], max_bytes=1 << 16)
    assert offer.query() is None
    with pytest.raises(LocalProtocolError):
        offer.take([])


def test_a_cell_that_ends_where_the_last_page_did_is_not_asked_for_again() -> None:
    offer = Offer(
        LAYOUT, [Cell(3, 0), Cell(3, 8)], max_bytes=1 << 16, after=Cursor(3, (80, b"an op of the second cell"))
    )
    query = offer.query()
    assert query is not None
    assert query.created_us == range(80, 120)
