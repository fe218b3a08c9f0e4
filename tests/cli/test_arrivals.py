"""What a running node says of those that come and go: each of a few, and how many there were of a crowd."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from prime_dht.cli.arrivals import SUMMARY_EVERY_S, TOLD_SINGLY, Arrivals, log_arrivals
from prime_dht.events import EntriesEvicted, EntriesExpired, Event, PeerJoined, PeerLeft
from prime_dht.ids import OpId, PeerId, peer_text, short

ALICE = PeerId(b"\x00\x24" + b"a" * 36)
ADDRESS = "/ip4/192.0.2.1/tcp/4001"
JOINED = PeerJoined(peer=ALICE, addresses=(ADDRESS,))
LEFT = PeerLeft(peer=ALICE, reason="no answer within 10 s")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="prime_dht.cli.arrivals")
    return caplog


def test_the_first_that_come_and_go_are_told_singly(lines: pytest.LogCaptureFixture) -> None:
    arrivals = Arrivals(lambda: 7)
    arrivals.heard(JOINED)
    arrivals.heard(LEFT)
    arrivals.sum_up()
    assert lines.messages == [
        f"peer {short(ALICE)} joined (7 known): {ADDRESS}",
        f"peer {short(ALICE)} left (7 known): no answer within 10 s; it is back when it answers again",
    ]
    fields = vars(lines.records[0])
    assert (fields["event"], fields["peer"], fields["known"]) == ("peer_joined", peer_text(ALICE), 7)
    assert fields["addresses"] == (ADDRESS,)
    assert vars(lines.records[1])["reason"] == "no answer within 10 s"


def test_of_a_crowd_only_the_number_is_told(lines: pytest.LogCaptureFixture) -> None:
    arrivals = Arrivals(lambda: 197)
    for _ in range(200):
        arrivals.heard(JOINED)
    for _ in range(3):
        arrivals.heard(LEFT)
    assert len(lines.messages) == TOLD_SINGLY
    arrivals.sum_up()
    assert lines.messages[TOLD_SINGLY:] == ["197 peers known; 200 joined and 3 left in the last minute"]
    assert (vars(lines.records[-1])["joined"], vars(lines.records[-1])["left"]) == (200, 3)


def test_after_a_summary_it_counts_anew(lines: pytest.LogCaptureFixture) -> None:
    arrivals = Arrivals(lambda: 1)
    for _ in range(TOLD_SINGLY + 1):
        arrivals.heard(JOINED)
    arrivals.sum_up()
    lines.clear()
    arrivals.heard(LEFT)
    arrivals.sum_up()
    assert len(lines.messages) == 1


def test_a_full_store_is_a_warning_with_a_way_out(lines: pytest.LogCaptureFixture) -> None:
    arrivals = Arrivals(lambda: 1)
    arrivals.heard(EntriesEvicted(op_ids=(OpId(b"a" * 32), OpId(b"b" * 32))))
    arrivals.heard(EntriesExpired(values_dropped=1, retired=1))
    arrivals.sum_up()
    (line,) = lines.records
    assert line.levelno == logging.WARNING
    assert line.getMessage().startswith("the store is full: 2 entries went to make room in the last minute; raise")


async def test_it_sums_up_every_minute_until_the_node_closes(
    lines: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    async def events() -> AsyncIterator[Event]:
        for _ in range(2):
            for _ in range(TOLD_SINGLY + 1):
                yield JOINED
            await trio.sleep(SUMMARY_EVERY_S * 1.5)

    await log_arrivals(events(), lambda: 1)
    assert [line for line in lines.messages if "last minute" in line] == [
        f"1 peers known; {TOLD_SINGLY + 1} joined and 0 left in the last minute"
    ] * 2
