"""Blobs between nodes on sockets: a client that puts, providers that fail in every way, a reader that is killed."""

from __future__ import annotations

import mmap
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio

from prime_dht import DhtConfig, Mode, NodeConfig, PrimeDHT, StorageError, open_node
from prime_dht.blobs.cid import Cid
from prime_dht.blobs.memory import BlockMemory
from prime_dht.net.bitswap import PROTOCOL
from prime_dht.net.overlay import Overlay
from prime_dht.storage.blocks import BlockStore

MIB = 1 << 20
VALUE = Random(3).randbytes(6 * MIB + 1)
BLOCKS = 8
"""Seven leaves and the root."""

FETCH = (sys.executable, str(Path(__file__).with_name("fetch_until_killed.py")))
TIMEOUT_S = 60.0


@asynccontextmanager
async def server(*peers: PrimeDHT, data_dir: Path | None = None) -> AsyncIterator[PrimeDHT]:
    addresses = tuple(address for peer in peers for address in peer.addresses())
    config = NodeConfig(listen=("/ip4/127.0.0.1/tcp/0",), peers=addresses, data_dir=data_dir)
    async with open_node(config) as node:
        if peers:
            await node.bootstrap()
        yield node


@asynccontextmanager
async def client(
    peer: PrimeDHT, data_dir: Path | None = None, *, in_flight_bytes: int = 64 * MIB
) -> AsyncIterator[PrimeDHT]:
    dht = DhtConfig(mode=Mode.CLIENT, blobs_in_flight_bytes=in_flight_bytes)
    config = NodeConfig(listen=(), peers=tuple(peer.addresses()), data_dir=data_dir, dht=dht)
    async with open_node(config) as node:
        await node.bootstrap()
        yield node


def blocks_sent(node: PrimeDHT) -> int:
    return overlay_of(node).blocks_sent


def overlay_of(node: PrimeDHT) -> Overlay:
    assert isinstance(node._network, Overlay)
    return node._network


async def test_a_file_put_by_a_client_is_read_by_another_when_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(VALUE)
    async with server() as one, server(one):
        async with client(one, tmp_path / "data") as writer:
            receipt = await writer.put("model", path)
            assert receipt.acknowledged
            assert receipt.blob is not None
        async with client(one) as reader:
            found = await reader.get("model", to=tmp_path / "copy")
            assert found is not None
            assert (found.blob, found.metadata["name"]) == (receipt.blob, "weights.bin")
            assert found.content_type == "application/octet-stream"
    assert (tmp_path / "copy").read_bytes() == VALUE


async def test_a_server_offers_bitswap_as_well_and_a_client_only_what_its_replicas_need() -> None:
    async with server() as node, client(node) as asker:
        offered = {str(protocol) for protocol in node._host.get_mux().handlers}
        assert {PROTOCOL, DhtConfig().blocks_protocol} <= offered
        by_client = {str(protocol) for protocol in asker._host.get_mux().handlers}
        assert DhtConfig().blocks_protocol in by_client
        assert not {PROTOCOL, DhtConfig().kad_protocol, DhtConfig().sync_protocol} & by_client


async def test_a_fetch_has_little_memory_which_it_uses_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = Random(4).randbytes(24 * MIB)
    made: list[int] = []

    class Counted(mmap.mmap):
        def __init__(self, *arguments: int) -> None:
            made.append(arguments[1])

    async with server() as one, server(one) as other:
        receipt = await one.blobs.add(value, pin=True)
        assert receipt.blob is not None
        monkeypatch.setattr("prime_dht.blobs.memory.mmap.mmap", Counted)
        async with client(other, in_flight_bytes=16 * MIB) as reader:  # and a single fetch has half of it
            await reader.blobs.fetch(receipt.blob.cid, to=tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == value
    assert 1 <= len(made) <= 12
    assert set(made) == {MIB}


async def test_the_memory_of_a_fetch_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    memories: list[BlockMemory] = []

    class Noted(BlockMemory):
        def __init__(self, *, kept: int) -> None:
            super().__init__(kept=kept)
            memories.append(self)

    monkeypatch.setattr("prime_dht.node.blobs.fetch.BlockMemory", Noted)
    async with server() as node, client(node) as reader:
        receipt = await node.blobs.add(VALUE)
        assert receipt.blob is not None
        assert await reader.blobs.fetch(receipt.blob.cid) == VALUE
    assert memories
    assert not any(memory._free for memory in memories)


class Hostile:
    """A source of blocks, each of which is not what was asked for."""

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self.asked = 0

    async def present(self, cids: Iterable[Cid]) -> set[Cid]:
        await trio.lowlevel.checkpoint()
        return set(cids)

    async def read(self, cids: Sequence[Cid]) -> list[bytes | None]:
        self.asked += 1
        return await self.answer(await self._blocks.read(cids))

    async def answer(self, data: list[bytes | None]) -> list[bytes | None]:
        raise NotImplementedError


class Liar(Hostile):
    async def answer(self, data: list[bytes | None]) -> list[bytes | None]:
        return [b"?" + (each or b"")[1:] for each in data]


class Staller(Hostile):
    async def answer(self, data: list[bytes | None]) -> list[bytes | None]:
        await trio.sleep_forever()


class Lacking(Hostile):
    async def answer(self, data: list[bytes | None]) -> list[bytes | None]:
        await trio.lowlevel.checkpoint()
        return [None for _ in data]


class Vanishing(Hostile):
    async def answer(self, data: list[bytes | None]) -> list[bytes | None]:
        await trio.lowlevel.checkpoint()
        raise StorageError("the disk is gone")


async def test_a_blob_comes_from_one_honest_provider_among_those_that_lie_stall_lack_and_vanish() -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(server())
        nodes = [first] + [await stack.enter_async_context(server(first)) for _ in range(4)]
        receipt = await first.blobs.add(VALUE, pin=True)
        assert receipt.blob is not None
        sources: list[Hostile] = []
        for node in nodes[1:]:
            await node.blobs.pin(receipt.blob.cid)
        for node, kind in zip(nodes[1:], (Liar, Staller, Lacking, Vanishing), strict=True):
            source = kind(BlockStore.in_memory(max_bytes=MIB))
            overlay_of(node).serve_blocks(source, source)
            sources.append(source)
        reader = await stack.enter_async_context(client(first))
        with trio.fail_after(TIMEOUT_S):
            assert await reader.blobs.fetch(receipt.blob.cid) == VALUE
        assert any(source.asked for source in sources)


async def test_a_reader_that_was_killed_goes_on_and_no_block_is_sent_twice(tmp_path: Path) -> None:
    async with server() as node:
        receipt = await node.blobs.add(VALUE)
        assert receipt.blob is not None
        command = [*FETCH, node.addresses()[0], str(Cid.from_bytes(receipt.blob.cid)), str(tmp_path / "out")]
        with trio.fail_after(TIMEOUT_S):
            killed = await trio.run_process([*command, "3"], check=False)
            assert killed.returncode == -signal.SIGKILL
            assert not (tmp_path / "out").exists()
            before = blocks_sent(node)
            await trio.run_process([*command, "0"])
        assert (tmp_path / "out").read_bytes() == VALUE
        # Three leaves and the root were written, and whatever was written with them: perhaps all but the file's name.
        assert blocks_sent(node) - before <= BLOCKS - 4


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1])
async def test_blobs_of_every_size_come_back_equal(size: int, tmp_path: Path) -> None:
    content = VALUE[:size]
    async with server() as node:
        receipt = await node.blobs.add(content)
        assert receipt.blob is not None
        async with client(node) as reader:
            assert await reader.blobs.fetch(receipt.blob.cid) == content
            await reader.blobs.fetch(receipt.blob.cid, to=tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
