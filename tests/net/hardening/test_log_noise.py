"""P6, P13: what peers can put into the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.basic_host import BasicHost
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from prime_dht.net.hardening.log_noise import LISTENERS, PEER_CAUSED, TELL_AGAIN_S, quieten

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]

REFUSED = Multiaddr("/ip4/127.0.0.1/tcp/1")


@pytest.fixture
def loggers_as_they_were() -> Iterator[None]:
    """Without the filters that hosts of other tests have added, which stay with the process."""
    before = {name: logging.getLogger(name).filters[:] for name in (*PEER_CAUSED, LISTENERS)}
    for name in before:
        logging.getLogger(name).filters.clear()
    yield
    for name, filters in before.items():
        logging.getLogger(name).filters[:] = filters


async def alarms(host: BasicHost, caplog: pytest.LogCaptureFixture) -> int:
    """Records above INFO for a dial to a peer that is not there."""
    with trio.fail_after(30), pytest.raises(SwarmException):
        await host.connect(PeerInfo(ID.from_pubkey(create_new_key_pair().public_key), [REFUSED]))
    return sum(record.levelno > logging.INFO for record in caplog.records)


async def test_a_peer_that_is_not_there_alarms_a_stock_host(
    stock: OpenHost, loggers_as_they_were: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with stock(listen=()) as host:
        assert await alarms(host, caplog) > 0


async def test_a_peer_that_is_not_there_does_not_alarm_ours(ours: OpenHost, caplog: pytest.LogCaptureFixture) -> None:
    async with ours(listen=()) as host:
        assert await alarms(host, caplog) == 0


@pytest.mark.parametrize("name", PEER_CAUSED)
def test_the_loggers_exist(name: str) -> None:
    __import__(name)
    assert name in logging.Logger.manager.loggerDict


def test_who_debugs_sees_the_records_as_debug_ones(
    loggers_as_they_were: None, caplog: pytest.LogCaptureFixture
) -> None:
    quieten()
    quieten()
    logger = logging.getLogger(PEER_CAUSED[0])
    assert len(logger.filters) == 1
    logger.error("hidden")
    with caplog.at_level(logging.DEBUG, logger=PEER_CAUSED[0]):
        logger.error("shown")
    assert [(record.message, record.levelname) for record in caplog.records] == [("shown", "DEBUG")]


def test_a_listener_that_has_no_files_left_says_so_now_and_then_and_in_one_line(
    loggers_as_they_were: None, caplog: pytest.LogCaptureFixture
) -> None:
    quieten()
    trouble = OSError(24, "Too many open files")
    # Long after all others of this process; then the clock is set back.
    for created in (1e12, 1e12 + 0.1, 1e12 + TELL_AGAIN_S, 1e12 + TELL_AGAIN_S + 1, 1e12 - 3600):
        told = {"created": created, "levelno": logging.ERROR, "msg": f"{created}", "exc_info": (OSError, trouble, None)}
        logging.getLogger(LISTENERS).handle(logging.makeLogRecord(told))
    told_at = [1e12, 1e12 + TELL_AGAIN_S, 1e12 - 3600]
    assert [(record.message, record.exc_info) for record in caplog.records] == [(f"{at}", None) for at in told_at]
