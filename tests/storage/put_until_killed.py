"""Puts entries into the store named on the command line until it is killed, and prints the op ids that are durable."""

from __future__ import annotations

import sys
from itertools import count

import trio

from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.testing.storage_samples import NOW_US, make_entry

WRITERS = 8


async def put_for_ever(store: SQLiteBackend, writer: int) -> None:
    for number in count():
        entries = [make_entry(b"%d" % number, subkey=b"%d/%d/%d" % (writer, number, part)) for part in range(3)]
        await store.put_entries(entries, now_us=NOW_US)
        for entry in entries:
            print(entry.op_id.hex(), flush=True)


async def main(path: str) -> None:
    async with await SQLiteBackend.open(path) as store, trio.open_nursery() as nursery:
        for writer in range(WRITERS):
            nursery.start_soon(put_for_ever, store, writer)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
