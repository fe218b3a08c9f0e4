"""Starts, for each line on its input, a process that puts entries into the store named on the command line.

The process prints its id, and then the ids of the ops that are durable, until it is killed; then this one prints
``it is dead``. It is forked, because what takes the time in starting one is to import everything.
"""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path

import trio

from prime_dht.ids import Key
from prime_dht.storage.base import PutOutcome
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.testing.storage_samples import NOW_US, make_entry

WRITERS = 8


def say(line: str) -> None:
    """Print a line in one write, which SIGKILL cannot cut in two."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


async def put_for_ever(store: SQLiteBackend, writer: int) -> None:
    for number in count():
        key = Key(b"/prime/%d/%d/%d" % (os.getpid(), writer, number))
        entries = [make_entry(bytes(part * number), key=key, subkey=b"%d" % part) for part in range(3)]
        for entry, result in zip(entries, await store.put_entries(entries, now_us=NOW_US), strict=True):
            assert result.outcome is PutOutcome.INSERTED
            say(entry.op_id.hex())


async def put_until_killed(path: Path) -> None:
    say(str(os.getpid()))
    async with await SQLiteBackend.open(path) as store, trio.open_nursery() as nursery:
        for writer in range(WRITERS):
            nursery.start_soon(put_for_ever, store, writer)


def main(path: Path) -> None:
    for _ in sys.stdin:
        process = os.fork()
        if not process:
            trio.run(put_until_killed, path)
        os.waitpid(process, 0)
        say("it is dead")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
