"""Puts and gets among 16 nodes, beside the requests and the signatures that they are made of.

Each operation comes from a random node that is no replica of its key, with the read cache off, so that nothing is
answered at home: a put is 3 requests, a get as many as its quorum.

The *ratios* are what to compare between machines and versions: a put that waits for nothing but 3 requests, one after
the other, and 8 verifications takes 1; so does a get with quorum 1 that waits for 3 requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from libp2p.crypto.ed25519 import create_new_key_pair
from nacl.bindings import crypto_sign_open

from prime_dht import DhtConfig, PrimeDHT

from .measuring import Case, Operation, measure
from .rpc import open_pair, open_stock_pair
from .swarm import Swarm, open_swarm
from .tables import Row, Table

NODES = 16
VALUE_BYTES = 1024
BATCH = 512
SIGNED_BYTES = 300
"""About the size of an entry's header, which is what is signed."""


async def measure_operations(*, quick: bool) -> list[Table]:
    """The tables of this suite."""
    count, rounds = (32, 1) if quick else (320, 7)
    config = DhtConfig(cache_ttl_s=0)
    async with open_swarm(NODES, config) as swarm, open_pair() as pair, open_stock_pair() as stock:
        load = _Load(swarm, count)
        signatures = _Signatures()
        cases = [
            *pair.cases(count),
            *stock.cases(count),
            *signatures.cases(count),
            *load.cases(in_flight=1),
            *load.cases(in_flight=32),
            *load.batch_cases(1 if quick else 2),
        ]
        await measure([case for case in cases if case.in_flight == 32], rounds=1)  # opens connections and streams
        rows = await measure(cases, rounds=rounds)
    with TemporaryDirectory() as directory:
        async with open_swarm(NODES, config, directory=Path(directory)) as swarm:
            load = _Load(swarm, count)
            cases = [*load.cases(in_flight=1), *load.cases(in_flight=32), *load.batch_cases(1)]
            sqlite_rows = await measure(cases, rounds=1 if quick else 3)
    title = (
        f"{NODES} nodes in one process, loopback, {{}} backend, {VALUE_BYTES} random bytes, no read cache;\n"
        "after they met, what they had made was frozen for the garbage collector, as `prime-dht run` does.\n"
        "CPU is that of both ends. Of batches, rate, CPU and RPCs are per value, p50 and p99 are not"
    )
    return [
        Table(name="operations", title=title.format("memory"), rows=rows),
        Table(name="ratios", title="Ratios of medians", rows=_ratios(rows)),
        Table(name="operations_sqlite", title=title.format("SQLite"), rows=sqlite_rows),
    ]


class _Load:
    """Keys that were put and not read yet, and the operations that do either."""

    def __init__(self, swarm: Swarm, count: int) -> None:
        self._swarm = swarm
        self._count = count
        self._rng = Random(16)
        self._keys_made = 0
        self._values: dict[str, bytes] = {}

    def cases(self, in_flight: int) -> list[Case]:
        """A put, then gets of what it put."""
        measured = partial(Case, in_flight=in_flight, requests=self._swarm.requests_sent)
        return [
            measured(name="put", round=self._puts),
            measured(name="get, quorum 1", round=partial(self._gets, 1)),
            measured(name="get, quorum 2", round=partial(self._gets, 2)),
        ]

    def batch_cases(self, count: int) -> list[Case]:
        """Batches of 512, each from one node, which is a replica of some of the keys."""
        measured = partial(Case, in_flight=1, items=BATCH, requests=self._swarm.requests_sent)
        return [
            measured(name=f"put_many of {BATCH}", round=partial(self._put_batches, count)),
            measured(name=f"get_many of {BATCH}, quorum 1", round=partial(self._get_batches, count, 1)),
            measured(name=f"get_many of {BATCH}, quorum 2", round=partial(self._get_batches, count, 2)),
        ]

    def _puts(self) -> list[Operation]:
        self._values = self._new_values(self._count)
        return [partial(_put, self._swarm.outsider(key, self._rng), key, value) for key, value in self._values.items()]

    def _gets(self, quorum: int) -> list[Operation]:
        return [
            partial(_get, self._swarm.outsider(key, self._rng), key, value, quorum)
            for key, value in self._values.items()
        ]

    def _put_batches(self, count: int) -> list[Operation]:
        self._values = self._new_values(count * BATCH)
        return [partial(_put_many, self._rng.choice(self._swarm.nodes), batch) for batch in self._batches()]

    def _get_batches(self, count: int, quorum: int) -> list[Operation]:
        return [partial(_get_many, self._rng.choice(self._swarm.nodes), batch, quorum) for batch in self._batches()]

    def _new_values(self, count: int) -> dict[str, bytes]:
        first, self._keys_made = self._keys_made, self._keys_made + count
        return {f"bench:{number}": self._rng.randbytes(VALUE_BYTES) for number in range(first, self._keys_made)}

    def _batches(self) -> list[dict[str, bytes]]:
        items = list(self._values.items())
        return [dict(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]


async def _put(node: PrimeDHT, key: str, value: bytes) -> None:
    receipt = await node.put(key, value)
    assert len(receipt.stored_by) == receipt.wanted, receipt


async def _get(node: PrimeDHT, key: str, value: bytes, quorum: int) -> None:
    found = await node.get(key, quorum=quorum)
    assert found is not None
    assert found.value == value


async def _put_many(node: PrimeDHT, values: dict[str, bytes]) -> None:
    receipts = await node.put_many(values)
    assert all(len(receipt.stored_by) == receipt.wanted for receipt in receipts)


async def _get_many(node: PrimeDHT, values: dict[str, bytes], quorum: int) -> None:
    found = await node.get_many(values, quorum=quorum)
    assert [one and one.value for one in found.values()] == list(values.values())


class _Signatures:
    """What Ed25519 costs by itself, with the libraries that entries use."""

    def __init__(self) -> None:
        key_pair = create_new_key_pair(b"s" * 32)
        self._private_key = key_pair.private_key
        self._public_key = key_pair.public_key.to_bytes()
        self._message = b"m" * SIGNED_BYTES
        self._signed = self._private_key.sign(self._message) + self._message

    def cases(self, count: int) -> list[Case]:
        return [
            Case(name="Ed25519 sign", in_flight=1, round=lambda: [self._sign] * count),
            Case(name="Ed25519 verify", in_flight=1, round=lambda: [self._verify] * count),
        ]

    async def _sign(self) -> None:
        self._private_key.sign(self._message)

    async def _verify(self) -> None:
        crypto_sign_open(self._signed, self._public_key)


def _ratios(rows: Sequence[Row]) -> list[Row]:
    p50_ms = {(str(row["operation"]), row["in_flight"]): row["p50_ms"] for row in rows}

    def one(name: str) -> float:
        value = p50_ms[name, 1]
        assert isinstance(value, float)
        return value

    rpc_ms, verify_ms = one("PING"), one("Ed25519 verify")
    ratios: dict[str, tuple[float, float | None]] = {
        "put / (3 RPC + 8 verifications)": (one("put") / (3 * rpc_ms + 8 * verify_ms), 1.0),
        "get, quorum 1 / 3 RPC": (one("get, quorum 1") / (3 * rpc_ms), 1.0),
        "get, quorum 2 / 3 RPC": (one("get, quorum 2") / (3 * rpc_ms), None),
        "stock RPC / RPC": (one("stock py-libp2p RPC") / rpc_ms, None),
    }
    return [{"of_p50": name, "ratio": ratio, "aim_at_most": aim} for name, (ratio, aim) in ratios.items()]
