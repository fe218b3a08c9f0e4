"""Blocks between two processes, beside one raw stream between the same two, in turns.

``python -m tests.bench.blobs serve <MiB>`` holds the blocks, ``… ask <MiB> <rounds> <multiaddr>`` fetches them. Each is
a process of its own, and tells the most memory that it ever had resident. :func:`measure_blocks` runs both.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory

import trio
from libp2p.abc import IHost, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

from prime_dht.blobs.cid import Cid
from prime_dht.net.block_channel import PartCame
from prime_dht.net.block_server import BlockServer
from prime_dht.net.block_streams import BlockCame, BlockStream
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.offenders import Offenders
from prime_dht.storage.blocks import BlockStore, Claim

from .processes import peak_bytes, running
from .tables import Row, Table

RAW, BLOCKS = TProtocol("/bench/raw/1"), TProtocol("/prime/blocks/1.0.0")
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
ROOT = Cid.of_dag_pb(b"root")
MIB = 1 << 20
READ_BYTES = 1 << 16
WANTED_AT_ONCE = 32
ADDED_AT_ONCE = 4
TAKEN_AT_A_TIME = 2  # one goes on while another waits for the disk


async def measure_blocks(*, quick: bool) -> Table:
    """The table of blocks."""
    mebibytes, rounds = (8, 1) if quick else (256, 3)
    return await trio.to_thread.run_sync(_measure, mebibytes, rounds)


def _measure(mebibytes: int, rounds: int) -> Table:
    with running("blobs", "serve", mebibytes) as (to_server, from_server):
        address = from_server.readline().strip()
        with running("blobs", "ask", mebibytes, rounds, address) as (_, from_asker):
            rates, peak = json.loads(from_asker.readline())
        to_server.close()
        server_peak = float(from_server.readline())
    raw = median(rates["raw stream"])
    rows: list[Row] = [
        {"what": what, "MB_per_s": median(each), "of_raw": median(each) / raw, "least": min(each), "most": max(each)}
        for what, each in rates.items()
    ]
    title = f"{mebibytes} MiB in blocks of 1 MiB, {rounds} rounds; peak {peak:.0f} MB asking, {server_peak:.0f} serving"
    return Table(name="blobs_blocks", title=title, rows=rows)


async def _serve(mebibytes: int) -> None:
    with TemporaryDirectory() as directory:
        async with (
            await BlockStore.open(Path(directory), max_bytes=2 * mebibytes * MIB) as store,
            open_host(HostSettings(key_pair=create_new_key_pair(), listen=(LOOPBACK,))) as host,
        ):
            await store.claim(Claim(root=ROOT), size_bytes=mebibytes * MIB)
            for block in _blocks(mebibytes):
                await store.add(ROOT, [(Cid.of_raw(block), block)])
            host.set_stream_handler(BLOCKS, BlockServer(store, Offenders()).serve)
            host.set_stream_handler(RAW, send_raw)
            print(host.get_addrs()[0], flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)
    print(peak_bytes() / 1e6)


async def _ask(mebibytes: int, rounds: int, address: str) -> None:
    cids = [Cid.of_raw(block) for block in _blocks(mebibytes)]
    rates: dict[str, list[float]] = {}
    async with open_host(HostSettings(key_pair=create_new_key_pair())) as host:
        server = info_from_p2p_addr(Multiaddr(address))
        await host.connect(server)

        async def raw() -> None:
            await receive_raw(host, server.peer_id, mebibytes)

        async def blocks() -> None:
            await _fetch(host, server.peer_id, cids, None)

        async def stored() -> None:
            with TemporaryDirectory() as directory:
                async with await BlockStore.open(Path(directory), max_bytes=2 * mebibytes * MIB) as store:
                    await _fetch(host, server.peer_id, cids, store)

        async def disk() -> None:
            with TemporaryDirectory() as directory:
                async with await BlockStore.open(Path(directory), max_bytes=2 * mebibytes * MIB) as store:
                    await store.claim(Claim(root=ROOT), size_bytes=mebibytes * MIB)
                    for start in range(0, mebibytes, ADDED_AT_ONCE):
                        data = [bytearray(MIB) for _ in range(ADDED_AT_ONCE)]
                        await store.add(ROOT, list(zip(cids[start : start + ADDED_AT_ONCE], data, strict=False)))

        cases: dict[str, Callable[[], Awaitable[None]]] = {
            "raw stream": raw,
            "blocks, verified": blocks,
            "blocks, verified and stored": stored,
            "the store alone": disk,
        }
        for _ in range(rounds):
            for what, case in cases.items():
                began_s = time.perf_counter()
                await case()
                rates.setdefault(what, []).append(mebibytes * MIB / 1e6 / (time.perf_counter() - began_s))
        await host.disconnect(server.peer_id)
    print(json.dumps([rates, peak_bytes() / 1e6]))


async def _fetch(host: IHost, peer: ID, cids: list[Cid], store: BlockStore | None) -> None:
    """Fetch all, some at a time, and verify and store what came while more comes."""
    stream = BlockStream(await host.new_stream(peer, [BLOCKS]))
    left = iter(cids)
    to_take, came = trio.open_memory_channel[BlockCame](ADDED_AT_ONCE)

    async def take(blocks: list[BlockCame]) -> None:
        assert all(await stream.verify(blocks))
        if store is not None:
            await store.add(ROOT, [(block.cid, block.data) for block in blocks])

    async def take_what_came() -> None:
        batch: list[BlockCame] = []
        async for each in came:
            batch.append(each)
            if len(batch) == ADDED_AT_ONCE:
                await take(batch)
                batch.clear()
        await take(batch)

    if store is not None:
        await store.claim(Claim(root=ROOT), size_bytes=len(cids) * MIB)
    await stream.ask(list(islice(left, WANTED_AT_ONCE)))
    async with trio.open_nursery() as nursery:
        for _ in range(TAKEN_AT_A_TIME):
            nursery.start_soon(take_what_came)
        async with to_take:
            for _ in cids:
                while isinstance(outcome := await stream.receive(), PartCame):
                    pass
                assert isinstance(outcome, BlockCame)
                await to_take.send(outcome)
                await stream.ask(list(islice(left, 1)))
    await stream.close()


async def send_raw(stream: INetStream) -> None:
    mebibytes = int(await stream.read(READ_BYTES))
    chunk = bytes(MIB)
    for _ in range(mebibytes):
        await stream.write(chunk)
    await stream.close()


async def receive_raw(host: IHost, peer: ID, mebibytes: int) -> None:
    stream = await host.new_stream(peer, [RAW])
    await stream.write(b"%d" % mebibytes)
    received = 0
    try:
        while True:
            received += len(await stream.read(READ_BYTES))
    except StreamEOF:
        assert received == mebibytes * MIB
    await stream.close()


def _blocks(mebibytes: int) -> Iterator[bytes]:
    rng = Random(7)
    return (rng.randbytes(MIB) for _ in range(mebibytes))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", mebibytes]:
            trio.run(_serve, int(mebibytes))
        case ["ask", mebibytes, rounds, address]:
            trio.run(_ask, int(mebibytes), int(rounds), address)
