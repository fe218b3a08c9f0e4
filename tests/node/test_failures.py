"""Who failed a moment ago is known for a while, and those that never answered hide no replica."""

from __future__ import annotations

from prime_dht.ids import PeerId
from prime_dht.node.failures import BELIEVE_AGAIN_S, FAILURES_NOTED, Failures

REPLICA, STRANGER = PeerId(b"replica"), PeerId(b"stranger")


def test_a_peer_that_fails_again_has_failed_last() -> None:
    failures = Failures()
    failures.note(REPLICA, 0.0, is_replica=True)
    failures.note(STRANGER, 1.0, is_replica=False)
    failures.note(REPLICA, 2.0, is_replica=True)
    assert list(failures.recent(3.0)) == [REPLICA, STRANGER]
    assert list(failures.recent(1.0 + BELIEVE_AGAIN_S)) == [REPLICA]
    assert list(failures.recent_replicas(1.0 + BELIEVE_AGAIN_S)) == [REPLICA]
    assert not list(failures.recent(2.0 + BELIEVE_AGAIN_S))


def test_a_peer_that_is_there_again_has_not_failed_and_hides_none_that_did_before() -> None:
    failures = Failures()
    for number, peer in enumerate((REPLICA, STRANGER, PeerId(b"back"))):
        failures.note(peer, float(number), is_replica=peer != STRANGER)
    failures.forget(PeerId(b"back"))
    assert not failures.is_recent(PeerId(b"back"), 3.0)
    assert list(failures.recent(3.0)) == [STRANGER, REPLICA]
    assert list(failures.recent_replicas(3.0)) == [REPLICA]


def test_of_more_than_are_noted_the_first_are_forgotten() -> None:
    failures = Failures()
    failures.note(REPLICA, 0.0, is_replica=True)
    for number in range(FAILURES_NOTED):
        failures.note(PeerId(b"%d" % number), 1.0, is_replica=False)
    assert len(list(failures.recent(1.0))) == FAILURES_NOTED
    assert not list(failures.recent_replicas(1.0))
    assert not failures.is_recent(REPLICA, 1.0)


def test_who_could_not_be_reached_and_hangs_now_is_left_alone_again() -> None:
    failures = Failures()
    failures.note(REPLICA, 1.0, is_replica=True, is_gone=True, asked_at_s=0.99)
    failures.note(REPLICA, 9.0, is_replica=True, asked_at_s=4.0)
    assert failures.is_left_alone(REPLICA, 8.9 + BELIEVE_AGAIN_S)
    assert not failures.is_left_alone(REPLICA, 9.0 + BELIEVE_AGAIN_S)


def test_a_failure_that_is_noted_once_more_when_a_lookup_has_ended_makes_nobody_left_alone_for_longer() -> None:
    failures = Failures()
    failures.note(REPLICA, 1.0, is_replica=True, is_gone=True, asked_at_s=0.99)
    failures.note(REPLICA, 7.0, is_replica=True, asked_at_s=0.99)
    assert not failures.is_left_alone(REPLICA, 7.0)
    assert failures.is_recent(REPLICA, 6.9 + BELIEVE_AGAIN_S)
