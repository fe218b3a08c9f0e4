"""Answers that peers do not read, and whose are given up when they are too many."""

from __future__ import annotations

from prime_dht.net.unread import Unread


def test_of_a_peer_with_many_streams_one_goes_before_the_only_one_of_a_peer_that_reads() -> None:
    gone: list[str] = []
    unread = Unread(gone.append, total_bytes=100)
    for number in range(6):
        unread.add(f"one of many, {number}", 10, peer="many", now_s=8)
    reads = unread.add("reads", 40, peer="one", now_s=0)
    reads.moved_s = 9
    unread.add("new", 10, peer="new", now_s=10)
    assert len(gone) == 1
    assert gone[0].startswith("one of many")
    assert unread.bytes == 100


def test_as_many_streams_go_as_have_to_for_the_bound_to_hold() -> None:
    gone: list[str] = []
    unread = Unread(gone.append, total_bytes=100)
    for number in range(10):
        unread.add(f"old {number}", 10, peer=number, now_s=0)
    unread.add("new", 35, peer="new", now_s=1)
    assert len(gone) == 4
    assert "new" not in gone
    assert unread.bytes == 95


def test_an_answer_larger_than_the_bound_takes_its_own_stream_with_it_and_what_ends_later_counts_no_more() -> None:
    gone: list[str] = []
    unread = Unread(gone.append, total_bytes=100)
    first = unread.add("greedy", 60, peer="greedy", now_s=0)
    again = unread.add("greedy", 60, peer="greedy", now_s=0)
    assert gone == ["greedy"]
    assert unread.bytes == 0
    after = unread.add("greedy", 10, peer="greedy", now_s=0)  # its tasks have not all noticed yet
    unread.remove(first, 60)
    unread.remove(again, 60)
    assert unread.bytes == 10
    unread.remove(after, 10)
    assert unread.bytes == 0
