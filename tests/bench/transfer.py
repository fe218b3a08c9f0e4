"""Moving a store: one round of sync that gives an empty node all that another has.

Two nodes in a process each, over TCP, Noise and Yamux on loopback, each with a store in SQLite as ``prime-dht run`` has
it. The *sender* holds entries of 1 KiB of the last weeks, by four publishers. The *receiver* has none, begins a round,
and judges each entry as if a stranger had put it.

Beside the rate stands what no receiver gets around, verifying a signature for each entry. Memory is what either process
had at most during the round over what it had before. If it does not grow with the number of entries, it is flat.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import trio
from libp2p.crypto.ed25519 import create_new_key_pair

from prime_dht import NodeConfig, open_node
from prime_dht.entries.codec import inline
from prime_dht.entries.entry import Entry, EntryHeader
from prime_dht.entries.signing import sign_entry, verify_signature
from prime_dht.ids import Key, TimestampUs
from prime_dht.node.open import STORE_FILE
from prime_dht.storage.sqlite import SQLiteBackend

from .processes import forget_peak, peak_bytes, running
from .swarm import LOOPBACK, resident_bytes
from .tables import Row, Table

VALUE_BYTES = 1024
PUBLISHERS = 4
AIM_PER_S = 5000
DAY_US = 86_400_000_000
TTL_US = 29 * DAY_US
BATCH = 1000
VERIFIED = 2000
POLL_S = 0.5


async def measure_transfer(*, quick: bool) -> Table:
    """The table of entries moved from one node's store into another's."""
    rows = [await trio.to_thread.run_sync(_move, n) for n in ((500,) if quick else (20_000, 100_000))]
    title = f"One round that gives an empty node all of another's entries of {VALUE_BYTES} bytes; CPU is per entry"
    return Table(name="sync_transfer", title=title, rows=rows)


def _move(n: int) -> Row:
    """A round between two processes."""
    with (
        TemporaryDirectory(prefix="prime-dht-bench-") as directory,
        running("transfer", "send", f"{directory}/sender", n) as (to_sender, from_sender),
    ):
        address = from_sender.readline().strip()
        with running("transfer", "receive", f"{directory}/receiver", address) as (_, from_receiver):
            received = json.loads(from_receiver.readline())
            to_sender.write("done\n")
            to_sender.flush()
            sent = json.loads(from_sender.readline())
    assert received["stored"] == n, received
    return {
        "n": n,
        "per_s": n / received["round_s"],
        "aim_per_s": AIM_PER_S,
        "sender_cpu_us": 1e6 * sent["cpu_s"] / n,
        "receiver_cpu_us": 1e6 * received["cpu_s"] / n,
        "verify_us": received["verify_us"],
        "sender_grew_MB": sent["grown_bytes"] / 1e6,
        "receiver_grew_MB": received["grown_bytes"] / 1e6,
        "messages": received["messages"],
    }


async def _send(directory: Path, n: int) -> None:
    await _fill(directory / STORE_FILE, n)
    async with open_node(NodeConfig(data_dir=directory, listen=(LOOPBACK,))) as dht:
        with _used() as used:
            print(dht.addresses()[0], flush=True)
            await trio.to_thread.run_sync(sys.stdin.readline)
        print(json.dumps(used), flush=True)


async def _receive(directory: Path, address: str) -> None:
    async with open_node(NodeConfig(data_dir=directory, listen=(LOOPBACK,))) as dht:
        peer = await dht.add_peer(address)
        while True:
            with _used() as used:
                report = await dht.sync(peer)
            if report.outcome.refusal is None:
                break
            await trio.sleep(POLL_S)  # the sender is still reading its store
        found = {
            "stored": report.outcome.stored,
            "round_s": report.seconds,
            "messages": report.traffic.messages_sent + report.traffic.messages_received,
            "verify_us": _verify_us(),
        }
        print(json.dumps(used | found), flush=True)


@contextmanager
def _used() -> Iterator[dict[str, float]]:
    """CPU seconds and memory that the process takes within, to be found in the dictionary afterwards."""
    used: dict[str, float] = {}
    before_bytes, cpu_began_s = resident_bytes(), time.process_time()
    forget_peak()
    yield used
    used["cpu_s"] = time.process_time() - cpu_began_s
    used["grown_bytes"] = max(0, peak_bytes() - before_bytes)


async def _fill(path: Path, n: int) -> None:
    rng = Random(16)
    now_us = time.time_ns() // 1000
    async with await SQLiteBackend.open(path, synchronous="NORMAL") as store:
        for _ in range(0, n, BATCH):
            entries = [_new_entry(rng, now_us) for _ in range(min(BATCH, n))]
            await store.put_entries(entries, now_us=now_us)


def _new_entry(rng: Random, now_us: int) -> Entry:
    key_pair = create_new_key_pair(bytes(31) + bytes([rng.randrange(PUBLISHERS)]))
    value = rng.randbytes(VALUE_BYTES)
    created_at_us = now_us - rng.randrange(TTL_US - DAY_US)
    header = EntryHeader(
        network_id=NodeConfig().dht.network_id,
        key=Key(b"/prime/bench:%x" % rng.getrandbits(64)),
        created_at_us=TimestampUs(created_at_us),
        expires_at_us=TimestampUs(created_at_us + TTL_US),
        retain_until_us=TimestampUs(created_at_us + TTL_US),
        content=inline(value),
    )
    return sign_entry(header, key_pair.private_key, value)


def _verify_us() -> float:
    """CPU time of verifying one signature."""
    entry = _new_entry(Random(1), time.time_ns() // 1000)
    began_s = time.process_time()
    for _ in range(VERIFIED):
        assert verify_signature(entry)
    return 1e6 * (time.process_time() - began_s) / VERIFIED


if __name__ == "__main__":
    if sys.argv[1] == "send":
        Path(sys.argv[2]).mkdir()
        trio.run(_send, Path(sys.argv[2]), int(sys.argv[3]))
    else:
        trio.run(_receive, Path(sys.argv[2]), sys.argv[3])
