"""py-libp2p's own ``kad_dht``, the nearest peer: the same swarm, the same values, one operation at a time.

Few operations, since each takes 0.1 to 0.5 s. With k = 20 every one of 16 nodes stores every value, and a get is
answered at home; so the reader first forgets its copy. Its guards are off as it ships: should the host die of a
peer's bytes, the table says what happened.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from functools import partial
from random import Random

import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import Validator
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from .measuring import Case, Operation, measure
from .swarm import LOOPBACK, key_pairs
from .tables import Row, Table

VALUE_BYTES = 1024
TIMEOUT_S = 180.0
NAMESPACE = "bench"


async def measure_kad_dht(*, quick: bool) -> list[Table]:
    """The table of this suite."""
    nodes, count = (3, 3) if quick else (16, 20)
    rows: list[Row]
    try:
        with trio.fail_after(TIMEOUT_S):
            rows, join_s = await _measure(nodes, count)
        title = f"py-libp2p's kad_dht, {nodes} nodes, {VALUE_BYTES} random bytes; all knew all after {join_s:.1f} s"
    except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - theirs may fail in any way; ours is still measured
        title = f"py-libp2p's kad_dht, {nodes} nodes: failed"
        rows = [{"operation": "none", "why": f"{type(error).__name__}: {error}"[:200]}]
    return [Table(name="kad_dht", title=title, rows=rows)]


async def _measure(nodes: int, count: int) -> tuple[list[Row], float]:
    keys = key_pairs()
    listen = [Multiaddr(LOOPBACK)]
    async with AsyncExitStack() as stack:
        began_s = time.perf_counter()
        swarm: list[tuple[IHost, KadDHT]] = []
        for _ in range(nodes):
            host = new_host(key_pair=next(keys), listen_addrs=listen)
            await stack.enter_async_context(host.run(listen))
            dht = KadDHT(host, DHTMode.SERVER)
            dht.register_validator(NAMESPACE, _AnyValue())
            await stack.enter_async_context(background_trio_service(dht))
            swarm.append((host, dht))
        (first_host, _), *others = swarm
        first = PeerInfo(first_host.get_id(), first_host.get_addrs())
        for host, dht in others:
            await host.connect(first)
            await dht.add_peer(first.peer_id)
        for _, dht in swarm:
            await dht.refresh_routing_table()
        join_s = time.perf_counter() - began_s
        load = _Load([dht for _, dht in swarm], count)
        cases = [
            Case(name="kad_dht put", in_flight=1, round=load.puts),
            Case(name="kad_dht get", in_flight=1, round=load.gets),
        ]
        return await measure(cases, rounds=1), join_s


class _AnyValue(Validator):
    def validate(self, key: str, value: bytes) -> None:
        pass

    def select(self, key: str, values: list[bytes]) -> int:
        return 0


class _Load:
    def __init__(self, swarm: list[KadDHT], count: int) -> None:
        self._swarm = swarm
        self._rng = Random(16)
        self._values = {f"/{NAMESPACE}/{number}": self._rng.randbytes(VALUE_BYTES) for number in range(count)}

    def puts(self) -> list[Operation]:
        return [partial(self._put, self._rng.choice(self._swarm), *item) for item in self._values.items()]

    def gets(self) -> list[Operation]:
        return [partial(self._get, self._rng.choice(self._swarm), *item) for item in self._values.items()]

    async def _put(self, dht: KadDHT, key: str, value: bytes) -> None:
        await dht.put_value(key, value)

    async def _get(self, dht: KadDHT, key: str, value: bytes) -> None:
        dht.value_store.remove(key.encode())
        assert await dht.get_value(key) == value
