"""A blob fetched to a file by one node from others, beside one raw stream between the same two hosts, in turns.

``python -m tests.bench.blob_fetch provide <MiB> <directory> [<peer>]`` is a node that has the blob, ``… fetch <MiB>
<rounds> <directory> <root> <one> <three>`` fetches it, from a swarm of one node and from another of three. Each is a
process of its own, and tells the most memory that it ever had resident. :func:`measure_blobs` runs all of them.

A raw stream leaves out what a fetch is for: every byte hashed, written to a file, and the file brought to the disk.
With that and nothing else done to what it brings, it shows about what a fetch can reach on this machine. CPU time is
the fetching process's. What it fetched beyond the blob was asked of two providers at the end.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from queue import Queue
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import IO

import trio
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from multiaddr import Multiaddr

from prime_dht import DhtConfig, Mode, PrimeDHT
from prime_dht.blobs.cid import Cid
from prime_dht.blobs.memory import BlockMemory, Memory
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.yamux import FastYamuxStream
from prime_dht.node.blobs.disk import DiskWriter
from prime_dht.node.blobs.progress import BlobProgress
from prime_dht.storage.blocks import BlockStore

from .blobs import LOOPBACK, MIB, RAW, measure_blocks, receive_raw, send_raw
from .checkpoints import measure_checkpoints
from .processes import peak_bytes, running
from .tables import Row, Table

PROVIDERS = 3
RAW_STREAM, RAW_TO_FILE = "raw stream", "raw stream, hashed and written"
FROM_ONE, FROM_ALL = "blob from one provider", f"blob from {PROVIDERS} providers"
WHAT = (RAW_STREAM, RAW_TO_FILE, FROM_ONE, FROM_ALL)
BLOCKS_WAITING = 16


async def measure_blobs(*, quick: bool) -> list[Table]:
    """The tables of this suite: what a fetch is made of, fetches, and what need not be fetched."""
    mebibytes, rounds = (8, 1) if quick else (1024, 3)
    return [
        await measure_blocks(quick=quick),
        await trio.to_thread.run_sync(_measure, mebibytes, rounds),
        await measure_checkpoints(quick=quick),
    ]


def _measure(mebibytes: int, rounds: int) -> Table:
    with TemporaryDirectory(prefix="prime-dht-bench-") as directory, ExitStack() as stack:
        providers: list[tuple[IO[str], IO[str]]] = []
        addresses: list[str] = []
        root = ""
        for index in range(1 + PROVIDERS):  # the first by itself, the others together
            provider = running("blob_fetch", "provide", mebibytes, f"{directory}/{index}", *addresses[1:2])
            providers.append(stack.enter_context(provider))
            address, root = providers[-1][1].readline().split()
            addresses.append(address)
        with running("blob_fetch", "fetch", mebibytes, rounds, directory, root, *addresses[:2]) as (_, from_fetcher):
            rates, cpu_ms, fetched_mb, fetcher_peak_mb = json.loads(from_fetcher.readline())
        for to_provider, _ in providers:
            to_provider.close()
        provider_peak_mb = max(float(from_provider.readline()) for _, from_provider in providers)
    raw, limit = median(rates[RAW_STREAM]), median(rates[RAW_TO_FILE])
    rows: list[Row] = [
        {
            "what": what,
            "MB_per_s": median(rates[what]),
            "of_raw": median(rates[what]) / raw,
            "of_limit": median(rates[what]) / limit,
            "least": min(rates[what]),
            "most": max(rates[what]),
            "cpu_ms_per_MB": median(cpu_ms[what]),
            "fetched_MB": fetched_mb.get(what),
        }
        for what in WHAT
    ]
    peaks = f"peak {fetcher_peak_mb:.0f} MB fetching, {provider_peak_mb:.0f} providing"
    return Table(name="blobs_fetch", title=f"A blob of {mebibytes} MiB to a file, {rounds} rounds; {peaks}", rows=rows)


@asynccontextmanager
async def _node(directory: Path, mode: Mode, max_bytes: int, *peers: str) -> AsyncIterator[tuple[IHost, PrimeDHT]]:
    listen = (LOOPBACK,) if mode is Mode.SERVER else ()
    async with (
        await BlockStore.open(directory, max_bytes=max_bytes) as blocks,
        open_host(HostSettings(key_pair=create_new_key_pair(), listen=listen)) as host,
        PrimeDHT(host, DhtConfig(mode=mode), blocks=blocks, bootstrap_peers=peers) as dht,
    ):
        if peers:
            await dht.bootstrap()
        yield host, dht


async def _provide(mebibytes: int, directory: Path, *peers: str) -> None:
    async with _node(directory, Mode.SERVER, 2 * mebibytes * MIB, *peers) as (host, dht):
        receipt = await dht.blobs.add(_content(mebibytes), pin=True, wait_s=0)
        assert receipt.blob is not None
        host.set_stream_handler(RAW, send_raw)
        print(dht.addresses()[0], Cid.from_bytes(receipt.blob.cid), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
    print(peak_bytes() / 1e6)


async def _fetch(mebibytes: int, rounds: int, directory: Path, root: str, one: str, three: str) -> None:
    out = trio.Path(directory / "out")
    rates: dict[str, list[float]] = {what: [] for what in WHAT}
    cpu_ms: dict[str, list[float]] = {what: [] for what in WHAT}
    fetched_mb: dict[str, float] = {}
    size_mb = mebibytes * MIB / 1e6
    for number in range(rounds):
        for what in WHAT:
            peer = three if what == FROM_ALL else one
            async with _node(directory / f"fetcher {number} {what}", Mode.CLIENT, MIB, peer) as (host, dht):
                moved: deque[BlobProgress] = deque(maxlen=1)
                began_s, cpu_began_s = time.perf_counter(), time.process_time()
                provider = info_from_p2p_addr(Multiaddr(peer)).peer_id
                if what == RAW_STREAM:
                    await receive_raw(host, provider, mebibytes)
                elif what == RAW_TO_FILE:
                    await _receive_raw_to_file(host, provider, mebibytes, Path(out))
                else:
                    await dht.blobs.fetch(root, to=Path(out), progress=moved.append)
                    fetched_mb[what] = moved[0].fetched_bytes / 1e6
                rates[what].append(size_mb / (time.perf_counter() - began_s))
                cpu_ms[what].append(1e3 * (time.process_time() - cpu_began_s) / size_mb)
            if what != RAW_STREAM:
                await out.unlink()  # or the next would pay for giving back its room on the disk
    print(json.dumps([rates, cpu_ms, fetched_mb, peak_bytes() / 1e6]))


async def _receive_raw_to_file(host: IHost, peer: ID, mebibytes: int, path: Path) -> None:
    """The least that a fetch can do: read what comes, in pieces of a block, hash them, and write them; each in a thread
    of its own, from memory that is used again.
    """
    stream = await host.new_stream(peer, [RAW])
    await stream.write(b"%d" % mebibytes)
    assert isinstance(stream, NetStream)
    muxed = stream.muxed_stream
    assert isinstance(muxed, FastYamuxStream)
    memory = BlockMemory(kept=BLOCKS_WAITING)
    came, hashed = Queue[Memory | None](BLOCKS_WAITING), Queue[Memory | None](BLOCKS_WAITING)
    block, filled = memory.lend(MIB), 0

    def take(data: bytes | memoryview) -> bool:
        nonlocal block, filled
        rest = memoryview(data)
        while rest:
            piece = rest[: MIB - filled]
            block[filled : filled + len(piece)] = piece
            filled += len(piece)
            rest = rest[len(piece) :]
            if filled == MIB:
                came.put(block)  # nobody else is served here
                block, filled = memory.lend(MIB), 0
        return True

    def hash_blocks() -> None:
        for each in _each(came):
            sha256(each).digest()
            hashed.put(each)
        hashed.put(None)

    def write_blocks() -> None:
        number = -1
        with ExitStack() as resources:
            file = resources.enter_context(path.open("wb"))
            writer = DiskWriter(file.fileno(), resources)
            for number, each in enumerate(_each(hashed)):
                writer.write(each, number * MIB)
                memory.take_back(each)
            writer.sync()
        assert number == mebibytes - 1, "the stream ended early"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, hash_blocks)
        nursery.start_soon(trio.to_thread.run_sync, write_blocks)
        with suppress(MuxedStreamEOF):
            await muxed.receive(take)
        came.put(None)
    await stream.close()


def _each(blocks: Queue[Memory | None]) -> Iterator[Memory]:
    while (block := blocks.get()) is not None:
        yield block


async def _content(mebibytes: int) -> AsyncIterator[bytes]:
    rng = Random(7)
    for _ in range(mebibytes):
        await trio.lowlevel.checkpoint()
        yield rng.randbytes(MIB)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["provide", mebibytes, directory, *peers]:
            trio.run(_provide, int(mebibytes), Path(directory), *peers)
        case ["fetch", mebibytes, rounds, directory, root, one, three]:
            trio.run(_fetch, int(mebibytes), int(rounds), Path(directory), root, one, three)
