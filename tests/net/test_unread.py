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


def test_who_takes_a_little_of_everything_just_before_it_asks_for_more_goes_before_who_reads_slowly() -> None:
    gone: list[str] = []
    unread = Unread(gone.append, total_bytes=100)
    hoarded = [unread.add(f"hoarded {number}", 10, peer="hoards", now_s=0) for number in range(9)]
    slow = unread.add("slow", 5, peer="slow", now_s=7)
    slow.moved_s = 7.75
    for burden in hoarded:
        burden.moved_s = 8.0
    unread.add("more", 10, peer="hoards", now_s=8.0)
    assert len(gone) == 1
    assert gone[0].startswith("hoarded")


def test_whose_answers_are_always_new_ones_is_not_taken_for_one_who_has_kept_them_for_long() -> None:
    gone: list[str] = []
    unread = Unread(gone.append, total_bytes=100)
    busy = unread.add("busy", 40, peer="busy", now_s=0)
    for second in range(1, 100):  # half of it is new each second
        unread.add("busy", 20, peer="busy", now_s=second)
        unread.remove(busy, 20)
        busy.moved_s = second
    still = unread.add("still", 30, peer="still", now_s=99)
    still.moved_s = 99.5
    busy.moved_s = 99.9
    unread.add("new", 40, peer="new", now_s=100)
    assert gone == ["still"]


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
