"""A storage backend of one's own, in one file: everything in memory, and every change in a journal of JSON lines.

    python examples/custom_backend.py journal.jsonl greeting "hello, journal"
    python examples/custom_backend.py journal.jsonl greeting

A backend is a class with the methods of `prime_dht.storage.base.StorageBackend`, which says what it has to promise.
This one inherits how things are stored and found, limits included, and adds what memory lacks: a change is written to
the journal, and synced, before it is made. Since time is an argument of every call, and chance has no part in any, the
same changes made again lead to the same state; that is how it opens.

Whether a backend keeps its promises is what `prime_dht.testing.storage_conformance` checks; for this one that is done
in tests/examples/test_custom_backend.py. What it leaves out is to write the journal anew when most of it is past.
"""

import errno
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import trio
from libp2p import new_host
from multiaddr import Multiaddr

from prime_dht import PrimeDHT
from prime_dht.entries.entry import Entry
from prime_dht.errors import StorageError, ValidationError
from prime_dht.ids import OpId, PeerId
from prime_dht.kad.keyspace import Prefix
from prime_dht.storage.base import Expired, Gone, KnownPeer, OwnSlot, PlainRecord, ProviderRecord, PutResult
from prime_dht.storage.capacity import Capacity
from prime_dht.storage.dump_lines import Line, Meta, decode_line, encode_line
from prime_dht.storage.memory import MemoryBackend


class JournalBackend(MemoryBackend):
    """See the module. `open` makes one: `async with await JournalBackend.open(path) as store`."""

    def __init__(self, file: BinaryIO, capacity: Capacity | None = None) -> None:
        super().__init__(capacity)
        self._file = file
        self._turns = trio.Lock()

    @classmethod
    async def open(cls, path: Path, *, capacity: Capacity | None = None) -> "JournalBackend":
        """Make the changes in the journal at `path` again; there may be none yet. The limits have to be the same."""
        store = cls(await trio.to_thread.run_sync(open_journal, path), capacity)
        for line in await trio.to_thread.run_sync(store._file.readlines):
            await store._repeat(json.loads(line))
        store.capacity = capacity or Capacity()
        return store

    async def put_entries(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
        async with self._written("put_entries", entries, now_us=now_us, arc=self._arc()):
            return await super().put_entries(entries, now_us=now_us)

    async def remove_ops(self, op_ids: Sequence[OpId]) -> list[Gone]:
        async with self._written("remove_ops", op_ids=[op_id.hex() for op_id in op_ids]):
            return await super().remove_ops(op_ids)

    async def delete_expired(self, *, now_us: int, retire_before_us: int, limit: int = 1000) -> Expired:
        async with self._written("delete_expired", now_us=now_us, retire_before_us=retire_before_us, limit=limit):
            return await super().delete_expired(now_us=now_us, retire_before_us=retire_before_us, limit=limit)

    async def put_record(self, record: PlainRecord, *, now_us: int) -> None:
        async with self._written("put_record", [record], now_us=now_us, arc=self._arc()):
            await super().put_record(record, now_us=now_us)

    async def add_provider(self, record: ProviderRecord, *, now_us: int) -> None:
        async with self._written("add_provider", [record], now_us=now_us, arc=self._arc()):
            await super().add_provider(record, now_us=now_us)

    async def put_peers(self, peers: Sequence[KnownPeer]) -> None:
        async with self._written("put_peers", peers):
            await super().put_peers(peers)

    async def remove_peers(self, peers: Sequence[PeerId]) -> None:
        async with self._written("remove_peers", peers=[peer.hex() for peer in peers]):
            await super().remove_peers(peers)

    async def put_own_slots(self, slots: Sequence[OwnSlot]) -> None:
        async with self._written("put_own_slots", slots):
            await super().put_own_slots(slots)

    async def put_meta(self, name: str, value: bytes) -> None:
        async with self._written("put_meta", [Meta(name, value)]):
            await super().put_meta(name, value)

    async def aclose(self) -> None:
        async with self._turns:
            self._file.close()
            await super().aclose()

    def _arc(self) -> list[int] | None:
        """What this node is responsible for; it decides what is evicted, so it is part of a change."""
        arc = self.capacity.responsible
        return None if arc is None else [arc.value, arc.length]

    @asynccontextmanager
    async def _written(self, change: str, lines: Sequence[Line] = (), **others: object) -> AsyncIterator[None]:
        """Write a change to the journal, and let nobody come between that and its being made."""
        async with self._turns:
            if self._file.closed:
                raise StorageError("the store is closed")
            journaled = {"change": change, "lines": [json.loads(encode_line(line)) for line in lines], **others}
            with trio.CancelScope(shield=True):  # what is written has to be made
                await trio.to_thread.run_sync(append, self._file, json.dumps(journaled).encode() + b"\n")
                yield

    async def _repeat(self, journaled: dict[str, Any]) -> None:
        """Make a change that was written."""
        lines = [decode_line(json.dumps(line).encode()) for line in journaled["lines"]]
        if "arc" in journaled:
            arc = journaled["arc"]
            self.capacity = replace(self.capacity, responsible=arc and Prefix(value=arc[0], length=arc[1]))
        match journaled, lines:
            case {"change": "put_entries", "now_us": now_us}, _:
                await super().put_entries([line for line in lines if isinstance(line, Entry)], now_us=now_us)
            case {"change": "remove_ops", "op_ids": op_ids}, _:
                await super().remove_ops([OpId(bytes.fromhex(op_id)) for op_id in op_ids])
            case {
                "change": "delete_expired",
                "now_us": now_us,
                "retire_before_us": retire_before_us,
                "limit": limit,
            }, _:
                await super().delete_expired(now_us=now_us, retire_before_us=retire_before_us, limit=limit)
            case {"now_us": now_us}, [PlainRecord() as record]:
                with suppress(ValidationError):  # it had no room then either, but what had expired went
                    await super().put_record(record, now_us=now_us)
            case {"now_us": now_us}, [ProviderRecord() as record]:
                with suppress(ValidationError):
                    await super().add_provider(record, now_us=now_us)
            case {"change": "put_peers"}, _:
                await super().put_peers([line for line in lines if isinstance(line, KnownPeer)])
            case {"change": "remove_peers", "peers": peers}, _:
                await super().remove_peers([PeerId(bytes.fromhex(peer)) for peer in peers])
            case {"change": "put_own_slots"}, _:
                await super().put_own_slots([line for line in lines if isinstance(line, OwnSlot)])
            case _, [Meta(name, value)]:
                await super().put_meta(name, value)
            case _:
                raise StorageError(f"the journal has a change of an unknown kind: {journaled['change']}")


def open_journal(path: Path) -> BinaryIO:
    """The journal, without the line in the midst of which its writer may have died."""
    file = path.open("a+b", buffering=0)
    file.seek(0)
    whole = file.read().rpartition(b"\n")
    file.truncate(len(whole[0] + whole[1]))
    file.seek(0)
    return file


def append(file: BinaryIO, line: bytes) -> None:
    """Write a line that survives a loss of power, or nothing."""
    end = file.seek(0, os.SEEK_END)
    try:
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    except OSError as error:
        file.truncate(end)
        raise StorageError(f"the journal cannot be written: {error.strerror}") from error


async def main(journal: Path, key: str, value: str | None) -> None:
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
    host = new_host(listen_addrs=listen)
    async with (
        await JournalBackend.open(journal) as store,
        host.run(listen),
        PrimeDHT(host, storage=store) as dht,
    ):
        if value is not None:
            await dht.put(key, value.encode(), ttl=3600)
        found = await dht.get(key, latest=True)
        print("nothing there" if found is None else found.value.decode())


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    trio.run(main, Path(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) == 4 else None)
