"""How much may be asked of a provider, and when it has stalled."""

from __future__ import annotations

from prime_dht.blobs.cid import Cid
from prime_dht.blobs.provider import FIRST_WINDOW_BYTES, MIN_COUNTED_BYTES, Provider
from prime_dht.ids import US_PER_S, PeerId

MIB = 1 << 20
CIDS = [Cid.of_raw(index.to_bytes(2, "big")) for index in range(400)]


def delivering(block_us: int, block_bytes: int = MIB, blocks: int = 200) -> Provider:
    """A provider that has delivered so many blocks, one every ``block_us``."""
    provider = Provider(PeerId(b"anne"))
    for index, cid in enumerate(CIDS[:blocks]):
        provider.ask(cid, block_bytes, index * block_us)
        provider.hear((index + 1) * block_us, block_bytes)
        provider.take_back(cid)
    return provider


def test_the_window_becomes_what_is_delivered_in_a_second() -> None:
    for block_us in (10_000, 40_000, 400_000):
        window_bytes = delivering(block_us).window_bytes
        assert 0.9 < window_bytes / (MIB * US_PER_S / block_us) < 1.1


def test_time_in_which_nothing_is_asked_does_not_count() -> None:
    provider = delivering(20_000)
    before_bytes = provider.window_bytes
    provider.ask(CIDS[0], MIB, 3600 * US_PER_S)
    provider.hear(3600 * US_PER_S + 20_000, MIB)
    assert abs(provider.window_bytes - before_bytes) < MIB


def test_of_a_block_that_another_brings_the_time_counts_and_nothing_else() -> None:
    provider = Provider(PeerId(b"anne"))
    provider.ask(CIDS[0], MIB, 0)
    assert provider.lose(CIDS[0], 3 * US_PER_S // 4)
    assert not provider.lose(CIDS[0], 3 * US_PER_S // 4)
    assert not provider.is_new
    assert provider.window_bytes == FIRST_WINDOW_BYTES // 4
    assert provider.answered_us == 0


def test_time_in_which_another_brought_a_block_counts_once() -> None:
    provider = Provider(PeerId(b"anne"))
    provider.ask(CIDS[0], MIB, 0)
    provider.ask(CIDS[1], MIB, 0)
    provider.lose(CIDS[0], US_PER_S // 4)
    provider.hear(US_PER_S // 4, MIB)
    assert provider.window_bytes == 2 * (FIRST_WINDOW_BYTES // 4 + MIB)


def test_one_block_may_always_be_asked_and_no_more_than_the_window() -> None:
    slow = delivering(60 * US_PER_S, blocks=10)
    assert slow.has_room(0)
    slow.ask(CIDS[0], MIB, 0)
    assert not slow.has_room(0)
    new = Provider(PeerId(b"bob"))
    new.ask(CIDS[0], MIB, 0)
    assert new.has_room(0)
    new.ask(CIDS[1], FIRST_WINDOW_BYTES - MIB, 0)
    assert not new.has_room(0)


def test_many_tiny_blocks_fill_the_window_too() -> None:
    provider = Provider(PeerId(b"anne"))
    asked = 0
    while provider.has_room(0):
        provider.ask(CIDS[asked], 1, 0)
        asked += 1
    assert asked == FIRST_WINDOW_BYTES // MIN_COUNTED_BYTES


def test_who_is_busy_rests_and_has_half_the_window_afterwards() -> None:
    provider = Provider(PeerId(b"anne"))
    provider.rest(US_PER_S)
    assert not provider.has_room(US_PER_S - 1)
    assert provider.has_room(US_PER_S)
    assert provider.window_bytes == FIRST_WINDOW_BYTES // 2


def test_silence_counts_from_the_last_answer_or_from_the_ask_after_a_pause() -> None:
    provider = Provider(PeerId(b"anne"))
    assert provider.stalls_at_us(10) is None
    provider.ask(CIDS[0], MIB, 100)
    provider.ask(CIDS[1], MIB, 105)
    assert provider.stalls_at_us(10) == 110
    provider.hear(108, MIB)
    provider.take_back(CIDS[0])
    assert provider.stalls_at_us(10) == 118
    provider.take_back(CIDS[1])
    assert provider.stalls_at_us(10) is None


def test_a_block_that_goes_on_coming_is_no_silence_but_has_to_come() -> None:
    provider = Provider(PeerId(b"anne"))
    provider.ask(CIDS[0], MIB, 0)
    provider.hear_part(8)
    assert provider.stalls_at_us(10) == 18
    assert provider.window_bytes == FIRST_WINDOW_BYTES  # how fast it is shows when the block is there
    provider.hear_part(39)
    assert provider.stalls_at_us(10) == 40


def test_an_ask_that_stays_open_while_others_are_answered_stalls_too() -> None:
    provider = Provider(PeerId(b"anne"))
    provider.ask(CIDS[0], MIB, 0)
    for index in range(1, 10):
        provider.ask(CIDS[index], MIB, 5 * index)
        provider.hear(5 * index, MIB)
        provider.take_back(CIDS[index])
    assert provider.stalls_at_us(10) == 40


def test_a_block_is_expected_after_all_that_was_asked_for_before_it() -> None:
    provider = Provider(PeerId(b"a peer"))
    assert provider.expected_us(FIRST_WINDOW_BYTES) == US_PER_S
    assert provider.expected_us(1) == provider.expected_us(MIN_COUNTED_BYTES)
    provider.ask(Cid.of_raw(b"before it"), FIRST_WINDOW_BYTES // 2, now_us=0)
    assert provider.expected_us(FIRST_WINDOW_BYTES) == 3 * US_PER_S // 2
