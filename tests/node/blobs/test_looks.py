"""Which of very many lacking blobs a node looks at first, to see whether it is to have them."""

from __future__ import annotations

from random import Random

import pytest

from prime_dht.blobs.cid import Cid
from prime_dht.ids import Key, OpId, PeerId, TimestampUs
from prime_dht.node.blobs.claims import KeptBlob
from prime_dht.node.blobs.turns import LOOK_AGAIN_S, LOOKS_AT_ONCE, LOOKS_OF, Begin, Turns, WaitUntil

BOB, EVE = PeerId(b"bob"), PeerId(b"eve")


def blob_of(publisher: PeerId, number: int = 0) -> KeptBlob:
    name = publisher + b" %d" % number
    return KeptBlob(
        op_id=OpId(name),
        root=Cid.of_raw(name),
        size=1,
        key=Key(b"k"),
        publisher=publisher,
        created_at_us=TimestampUs(0),
        is_by_put=True,
        since_s=0.0,
    )


def test_of_many_blobs_that_others_are_to_have_a_few_are_looked_at_each_time_and_ours_among_them_is_found() -> None:
    looked_at: list[KeptBlob] = []

    def is_ours(blob: KeptBlob) -> bool:
        looked_at.append(blob)
        return blob.publisher == BOB

    many = 3 * LOOKS_AT_ONCE
    turns = Turns(Random(1), is_ours)
    turns.add([*(blob_of(EVE, number) for number in range(many)), blob_of(BOB)])
    now_s = 0.0
    while isinstance(action := turns.next(now_s), WaitUntil):
        assert len(looked_at) <= LOOKS_AT_ONCE
        looked_at.clear()
        assert now_s < action.at_s < 1
        now_s = action.at_s
    assert isinstance(action, Begin)
    assert action.turn.blob == blob_of(BOB)
    assert len(looked_at) <= LOOKS_AT_ONCE


def test_of_more_blobs_than_can_be_looked_at_in_time_a_new_one_comes_first_and_then_the_others_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prime_dht.node.blobs.turns.LOOKS_AT_ONCE", 2)
    looked_at: list[KeptBlob] = []

    def is_ours(blob: KeptBlob) -> bool:
        looked_at.append(blob)
        return False

    turns = Turns(Random(1), is_ours)
    many, new = [blob_of(EVE, number) for number in range(6)], blob_of(BOB)
    turns.add(many)
    for number in range(4):
        turns.next(number * LOOK_AGAIN_S)
    assert looked_at == [*many, *many[:2]]
    turns.add([new])
    turns.next(4 * LOOK_AGAIN_S)
    assert looked_at[8:] == [new, many[2]]


def test_however_many_blobs_others_are_to_have_it_takes_few_rounds_to_look_at_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prime_dht.node.blobs.turns.LOOKS_AT_ONCE", 2)
    turns = Turns(Random(1), lambda _: False)
    turns.add([blob_of(EVE, number) for number in range(10 * LOOKS_OF)])
    now_s, rounds = 0.0, 0
    while now_s < LOOK_AGAIN_S:
        action = turns.next(now_s)
        assert isinstance(action, WaitUntil)
        now_s, rounds = action.at_s, rounds + 1
    assert rounds <= LOOKS_OF
