"""What is lost, or comes in another way, in the middle of a fetch, before anybody is told that the blob is here."""

from __future__ import annotations

import logging
from random import Random

import pytest
import trio
from trio.testing import MockClock

from prime_dht.blobs.cid import Cid
from prime_dht.testing.swarm import open_swarm

MIB = 1 << 20
VALUE = Random(7).randbytes(3 * MIB + 5)
LEAVES = [Cid.of_raw(VALUE[start : start + MIB]) for start in range(0, len(VALUE), MIB)]

STEP_S = 0.12
"""In which a replica gets some blocks, but not all of them."""


async def test_a_replica_that_loses_a_block_while_it_fetches_others_ends_with_all(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        writer, replica = swarm.nodes
        await writer.put("k", VALUE, wait_s=0)
        await trio.sleep(STEP_S)
        blocks = swarm.machine_of(replica).blocks
        first, *others = await blocks.present(LEAVES)
        assert len(others) + 1 < len(LEAVES)
        blocks._files.remove(first.digest)
        assert await blocks.read([first]) == [None]
        await trio.sleep(60)
        (kept,) = await replica.blobs.kept()
        assert kept.is_complete
        assert await blocks.present(LEAVES) == set(LEAVES)


async def test_that_what_a_replica_fetches_is_added_there_meanwhile_is_worth_no_warning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        writer, replica = swarm.nodes
        await writer.put("k", VALUE, wait_s=0)
        await trio.sleep(STEP_S)
        assert 0 < len(await swarm.machine_of(replica).blocks.present(LEAVES)) < len(LEAVES)
        await replica.blobs.add(VALUE)
        await trio.sleep(60)
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
        (kept,) = await replica.blobs.kept()
        assert kept.is_complete
