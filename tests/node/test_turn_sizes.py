"""How much goes into a turn with a peer: less after one that had no answer, more again when answers come soon."""

from __future__ import annotations

from prime_dht.ids import PeerId
from prime_dht.node.turn_sizes import LEAST_TURN_BYTES, LONG_S, PEERS_NOTED, SOON_S, TurnSizes
from prime_dht.sync.limits import TURN_BYTES

PEER, OTHER = PeerId(b"peer"), PeerId(b"other")


def test_turns_become_smaller_one_after_the_other_with_the_peer_that_did_not_answer_and_no_other() -> None:
    sizes = TurnSizes()
    told = []
    for _ in range(4):
        sizes.unanswered(PEER, sizes.of(PEER), LONG_S)
        told.append(sizes.of(PEER))
    assert told == [TURN_BYTES // 4, TURN_BYTES // 16, LEAST_TURN_BYTES, LEAST_TURN_BYTES]
    assert sizes.of(OTHER) == TURN_BYTES


def test_a_stream_that_is_gone_at_once_or_a_small_message_without_answer_says_nothing_of_the_path() -> None:
    sizes = TurnSizes()
    sizes.unanswered(PEER, TURN_BYTES, LONG_S - 1)
    sizes.unanswered(PEER, LEAST_TURN_BYTES, 2 * LONG_S)
    assert sizes.of(PEER) == TURN_BYTES


def test_turns_grow_again_when_full_ones_are_answered_soon() -> None:
    sizes = TurnSizes()
    sizes.unanswered(PEER, TURN_BYTES, LONG_S)
    small_bytes = sizes.of(PEER)
    sizes.answered(PEER, small_bytes, SOON_S + 1)
    sizes.answered(PEER, small_bytes // 2 - 1, SOON_S)
    assert sizes.of(PEER) == small_bytes
    sizes.answered(PEER, small_bytes // 2, SOON_S)
    assert sizes.of(PEER) == 2 * small_bytes
    sizes.answered(PEER, 2 * small_bytes, SOON_S)
    assert sizes.of(PEER) == TURN_BYTES
    sizes.answered(PEER, TURN_BYTES, SOON_S)
    assert sizes.of(PEER) == TURN_BYTES


def test_of_very_many_slow_peers_the_one_noted_first_is_forgotten() -> None:
    sizes = TurnSizes()
    peers = [PeerId(b"%d" % number) for number in range(PEERS_NOTED + 1)]
    for peer in peers:
        sizes.unanswered(peer, TURN_BYTES, LONG_S)
    assert [sizes.of(peer) < TURN_BYTES for peer in (peers[0], peers[1], peers[-1])] == [False, True, True]
