"""Bulk: one stream that carries 64 MiB, with our Noise and Yamux and with py-libp2p's, in turns."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.peerinfo import PeerInfo

from prime_dht.net.host import HostSettings, open_host
from prime_dht.testing.stock_host import stock_host

from .swarm import LOOPBACK, key_pairs
from .tables import Row, Table

SINK = TProtocol("/bench/sink/1")
MIB = 1 << 20
READ_BYTES = 1 << 16


async def measure_streams(*, quick: bool) -> list[Table]:
    """The table of this suite."""
    mebibytes, rounds = (4, 1) if quick else (64, 5)
    rates: dict[str, list[float]] = {"prime_dht": [], "stock py-libp2p": []}
    cpu: dict[str, list[float]] = {name: [] for name in rates}
    async with _open_ours() as ours, _open_stock() as stock:
        for _ in range(rounds):
            for name, (sender, receiver) in (("prime_dht", ours), ("stock py-libp2p", stock)):
                began_s, cpu_began_s = time.perf_counter(), time.process_time()
                await _send(sender, receiver, mebibytes)
                rates[name].append(mebibytes * MIB / 1e6 / (time.perf_counter() - began_s))
                cpu[name].append(time.process_time() - cpu_began_s)
        for sender, receiver in (ours, stock):
            await sender.disconnect(receiver.get_id())
    slowest = median(rates["stock py-libp2p"])
    rows: list[Row] = [
        {
            "stream": name,
            "MB_per_s": median(rates[name]),
            "least": min(rates[name]),
            "most": max(rates[name]),
            "cpu_s": median(cpu[name]),
            "times_stock": median(rates[name]) / slowest,
        }
        for name in rates
    ]
    return [Table(name="streams", title=f"{mebibytes} MiB in 1 MiB writes on one stream, {rounds} rounds", rows=rows)]


async def _send(sender: IHost, receiver: IHost, mebibytes: int) -> None:
    stream = await sender.new_stream(receiver.get_id(), [SINK])
    assert isinstance(stream, NetStream)
    chunk = bytes(MIB)
    for _ in range(mebibytes):
        await stream.write(chunk)
    await stream.close_write()
    assert int(await stream.read(READ_BYTES)) == mebibytes * MIB
    await stream.close()


async def _sink(stream: INetStream) -> None:
    """Read to the end, then say how much came."""
    received = 0
    try:
        while True:
            received += len(await stream.read(READ_BYTES))
    except StreamEOF:
        await stream.write(b"%d" % received)
        await stream.close()
    except StreamError:
        await stream.reset()


@asynccontextmanager
async def _open_ours() -> AsyncIterator[tuple[IHost, IHost]]:
    keys = key_pairs()
    async with (
        open_host(HostSettings(key_pair=next(keys))) as sender,
        open_host(HostSettings(key_pair=next(keys), listen=(LOOPBACK,))) as receiver,
    ):
        yield await _connect(sender, receiver)


@asynccontextmanager
async def _open_stock() -> AsyncIterator[tuple[IHost, IHost]]:
    async with stock_host() as sender, stock_host() as receiver:
        yield await _connect(sender, receiver)


async def _connect(sender: IHost, receiver: IHost) -> tuple[IHost, IHost]:
    receiver.set_stream_handler(SINK, _sink)
    await sender.connect(PeerInfo(receiver.get_id(), receiver.get_addrs()))
    return sender, receiver
