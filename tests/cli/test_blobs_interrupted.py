"""A fetch that ends half-way goes on with what is missing, and only that.

The provider is in the test's process, where each block that it reads for somebody is counted, and can be held back.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair

from prime_dht import PrimeDHT
from prime_dht.blobs.cid import Cid
from prime_dht.net.host import HostSettings, open_host
from prime_dht.storage.blocks import BlockStore
from prime_dht.storage.blocks_files import BlockFiles
from prime_dht.storage.blocks_index import BlockIndex
from prime_dht.testing.processes import LOOPBACK, PRIME_DHT, Ended, Running, prime_dht, running_warm

MIB = 1 << 20
CONTENT = Random(24).randbytes(24 * MIB)
LEAVES = [Cid.of_raw(CONTENT[start : start + MIB]) for start in range(0, len(CONTENT), MIB)]
FIRST = 13
"""What is handed out at first: the root, which is a node, and half of the leaves."""

TIMEOUT_S = 120.0


class Counting(BlockStore):
    """A block store that hands out so many blocks and no more.

    Attributes:
        handed_out: the blocks, in order.
        most: how many.
    """

    def __init__(self, index: BlockIndex, files: BlockFiles, *, place: Path, max_bytes: int) -> None:
        super().__init__(index, files, place=place, max_bytes=max_bytes)
        self.handed_out: list[Cid] = []
        self.most = math.inf

    async def read(self, cids: Sequence[Cid], *, verify: bool = False) -> list[bytes | None]:
        if len(self.handed_out) + len(cids) > self.most:
            await trio.sleep_forever()
        self.handed_out += cids
        return await super().read(cids, verify=verify)


@dataclass(frozen=True, slots=True)
class Provider:
    """A node that has the content.

    Attributes:
        cid: of the root.
        options: that name the node.
    """

    blocks: Counting
    cid: str
    options: tuple[str, ...]


@asynccontextmanager
async def open_provider() -> AsyncIterator[Provider]:
    async with (
        Counting.in_memory(max_bytes=2 * len(CONTENT)) as blocks,
        open_host(HostSettings(key_pair=create_new_key_pair(), listen=(LOOPBACK,))) as host,
        PrimeDHT(host, blocks=blocks) as dht,
    ):
        receipt = await dht.blobs.add(CONTENT)
        assert receipt.blob is not None
        assert isinstance(blocks, Counting)
        blocks.most = FIRST
        yield Provider(blocks, str(Cid.from_bytes(receipt.blob.cid)), ("--peer", dht.addresses()[0]))


def leaves_in_file(directory: Path) -> int:
    """Those that ``cat --out`` has written so far."""
    partial_files = list(directory.glob(".out.*.partial"))
    if not partial_files:
        return 0
    (path,) = partial_files
    data = path.read_bytes()
    return sum(leaf.verify(data[index * MIB : (index + 1) * MIB]) for index, leaf in enumerate(LEAVES))


def leaves_in_store(directory: Path) -> int:
    """Those that ``pin`` has stored so far."""
    return sum((directory / "me" / "blocks" / leaf.digest.hex()[:2] / leaf.digest.hex()).exists() for leaf in LEAVES)


async def half_way(fetching: Running, leaves_there: Callable[[], int]) -> None:
    """Wait until a command has stored all that it gets."""
    with trio.fail_after(TIMEOUT_S):
        while await trio.to_thread.run_sync(leaves_there) < FIRST - 1:
            assert fetching.process.poll() is None


async def run(*arguments: str) -> Ended:
    """Run a command to its end, while the provider answers it."""
    return await trio.to_thread.run_sync(partial(prime_dht, *arguments))


@pytest.mark.parametrize(
    ("command", "leaves_there"),
    [("cat {cid} --out {directory}/out", leaves_in_file), ("pin {cid} --data-dir {directory}/me", leaves_in_store)],
)
async def test_no_block_is_fetched_twice_by_a_command_that_is_killed_half_way_and_run_again(
    command: str, leaves_there: Callable[[Path], int], tmp_path: Path
) -> None:
    async with open_provider() as provider:
        words = (*command.format(cid=provider.cid, directory=tmp_path).split(), *provider.options)
        with running_warm(*PRIME_DHT, *words) as fetching:
            await half_way(fetching, partial(leaves_there, tmp_path))
            ended = await trio.to_thread.run_sync(fetching.stop, signal.SIGKILL)
        assert ended.status == -signal.SIGKILL
        fetched = provider.blocks.handed_out.copy()
        provider.blocks.most = math.inf
        ended = await run(*words)
        assert (ended.status, ended.err) == (0, "")
    assert len(fetched) == FIRST
    assert len(provider.blocks.handed_out) == len(LEAVES) + 1, "each leaf and the root once, over both"
    assert set(LEAVES) < set(provider.blocks.handed_out)
    assert await trio.to_thread.run_sync(leaves_there, tmp_path) == (0 if leaves_there is leaves_in_file else 24)
    if leaves_there is leaves_in_file:
        assert (tmp_path / "out").read_bytes() == CONTENT
        assert os.listdir(tmp_path) == ["out"], "nothing else stays"


async def test_ctrl_c_half_way_says_that_it_goes_on_from_there(tmp_path: Path) -> None:
    async with open_provider() as provider:
        words = ("cat", provider.cid, "--out", str(tmp_path / "out"), *provider.options)
        with running_warm(*PRIME_DHT, *words) as fetching:
            await half_way(fetching, partial(leaves_in_file, tmp_path))
            ended = await trio.to_thread.run_sync(fetching.stop, signal.SIGINT)
    line = f"prime-dht: interrupted; what has come is kept beside {tmp_path}/out: the same command goes on from there\n"
    assert (ended.status, ended.out, ended.err) == (130, b"", line)


async def test_the_timeout_is_for_how_long_nothing_moves(tmp_path: Path) -> None:
    async with open_provider() as provider:
        words = ("cat", provider.cid, "--out", str(tmp_path / "out"), "--timeout", "5", *provider.options)
        ended = await run(*words)
    kept = f"what has come is kept beside {tmp_path}/out: the same command goes on from there"
    assert (ended.status, ended.err) == (2, f"prime-dht: nothing has moved for 5 s (--timeout); {kept}\n")
    assert leaves_in_file(tmp_path) == FIRST - 1
